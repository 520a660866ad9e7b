//go:build linux

package generator

import (
	"context"
	"slices"
	"time"
)

// Connect opens the fleet's connections, rate a second or, with 0, as fast as
// the concurrency allows. It returns when each is open or has failed.
func (f *Fleet) Connect(ctx context.Context, rate float64) error {
	_, err := f.do(ctx, func(k int) order {
		return order{Do: doConnect, N: f.share[k], Rate: rate * float64(f.share[k]) / float64(f.conns)}
	})
	return err
}

// Talk is what the first connections say. Each message is answered by one, in
// order.
type Talk struct {
	Active   int     // connections that talk
	Rate     float64 // messages a second of all of them; 0: each when the last was answered
	Message  string
	Duration time.Duration
}

// Talk has connections talk for the duration, and waits for the last replies.
func (f *Fleet) Talk(ctx context.Context, t Talk) error {
	_, err := f.do(ctx, func(k int) order {
		active := f.spread(t.Active, k)
		return order{
			Do: doEcho, Active: active, Message: t.Message, Duration: t.Duration,
			Rate: t.Rate * float64(active) / float64(t.Active),
		}
	})
	return err
}

// Herd says who comes back.
type Herd struct {
	Keep     int           // connections that do not, the first of each worker
	Drop     bool          // drop the others now, all at once
	Obey     bool          // stay away as long as the server's goodbye says
	Patience time.Duration // who is not back by then stays away
}

// Herd has connections come back when they end, until all are back: when those
// that it dropped are, or when nothing has happened for a while.
func (f *Fleet) Herd(ctx context.Context, h Herd) (Round, error) {
	tallies, err := f.do(ctx, func(k int) order {
		return order{Do: doHerd, Keep: f.spread(h.Keep, k), Drop: h.Drop, Obey: h.Obey, Timeout: h.Patience}
	})
	return sumRounds(tallies), err
}

// Arm has every connection expect the messages 1 to rounds of a run, as
// [AppendMessage] makes them. One that takes longer than late is counted.
func (f *Fleet) Arm(ctx context.Context, run string, rounds int, late time.Duration) error {
	_, err := f.do(ctx, func(int) order { return order{Do: doArm, Run: run, Rounds: rounds, Late: late} })
	return err
}

// Expect settles who must have message seq of the run: those that are open when
// it returns. The message is to be sent then; await returns when it is
// everywhere, or after timeout.
func (f *Fleet) Expect(ctx context.Context, seq int, timeout time.Duration) (await func(context.Context) (Round, error), err error) {
	waits, err := f.start(func(int) order { return order{Do: doAwait, Seq: seq, Timeout: timeout} })
	if err != nil {
		return nil, err
	}
	if _, err := f.do(ctx, func(int) order { return order{Do: doSync} }); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (Round, error) {
		tallies, err := f.wait(ctx, waits)
		return sumRounds(tallies), err
	}, nil
}

func sumRounds(tallies []tally) (sum Round) {
	for _, t := range tallies {
		sum.add(t.Round)
	}
	return sum
}

// ExpectPushes begins a round of pushes, as [AppendPush] makes them, each
// for one connection.
func (f *Fleet) ExpectPushes(ctx context.Context, run string) error {
	_, err := f.do(ctx, func(int) order { return order{Do: doPushes, Run: run} })
	return err
}

// Pushes are those of a round that have come.
type Pushes struct{ came [][]byte } // by worker

// Has says that push n has come, where it should.
func (p Pushes) Has(n int) bool {
	return slices.ContainsFunc(p.came, func(came []byte) bool { return has(came, n) })
}

// Came returns which pushes of the round have come until now.
func (f *Fleet) Came() (p Pushes, err error) {
	tallies, err := f.do(context.Background(), func(int) order { return order{Do: doCame} })
	for i := range tallies {
		p.came = append(p.came, tallies[i].Came)
	}
	return p, err
}
