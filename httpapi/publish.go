package httpapi

import (
	"errors"
	"net/http"

	"github.com/tocsin-push/tocsin/server"
)

// receipt is the answer to a message that was accepted.
type receipt struct {
	ID          string   `json:"id"`
	Seq         uint64   `json:"seq,omitempty"`
	Epoch       string   `json:"epoch,omitempty"`
	Subscribers int      `json:"subscribers"`
	*outcome             // nil when nobody waited for it
	Devices     []device `json:"devices,omitempty"`
	Duplicate   bool     `json:"duplicate"`
}

type outcome struct {
	Written int `json:"written"`
	Queued  int `json:"queued"`
	Dropped int `json:"dropped"`
}

type device struct {
	Conn   string              `json:"conn"`
	Status server.DeviceStatus `json:"status"`
}

func newReceipt(from server.Receipt, wait server.Wait) *receipt {
	out := &receipt{
		ID: from.ID, Seq: from.Seq, Epoch: from.Epoch,
		Subscribers: from.Subscribers, Duplicate: from.Duplicate,
	}
	if wait == server.WaitNone {
		return out
	}
	out.outcome = &outcome{Written: from.Written, Queued: from.Queued, Dropped: from.Dropped}
	for _, d := range from.Devices {
		out.Devices = append(out.Devices, device(d))
	}
	return out
}

func (a *api) publish(w http.ResponseWriter, r *http.Request) error {
	return a.send(w, r, onPublish, func(q *request) (server.Receipt, error) {
		return a.backend.Publish(r.Context(), q.topic, q.message)
	})
}

func (a *api) push(w http.ResponseWriter, r *http.Request) error {
	return a.send(w, r, onPush, func(q *request) (server.Receipt, error) {
		return a.backend.Push(r.Context(), q.to, q.message)
	})
}

func (a *api) broadcast(w http.ResponseWriter, r *http.Request) error {
	return a.send(w, r, onBroadcast, func(q *request) (server.Receipt, error) {
		return a.backend.Broadcast(r.Context(), q.message)
	})
}

// send hands a message to the backend and answers with its receipt.
func (a *api) send(w http.ResponseWriter, r *http.Request, on routes, to func(*request) (server.Receipt, error)) error {
	q, err := a.request(w, r, on)
	if err != nil {
		return err
	}
	if len(q.message.Data) > a.cfg.MaxPublish {
		return tooBig(a.cfg.MaxPublish)
	}
	got, err := to(&q)
	if err == nil {
		writeJSON(w, http.StatusOK, "application/json", newReceipt(got, q.message.Wait))
		return nil
	}
	if errors.Is(err, server.ErrNoAck) {
		p, _ := a.problemOf(err)
		p.receipt = newReceipt(got, q.message.Wait)
		return p
	}
	return err
}

func (a *api) request(w http.ResponseWriter, r *http.Request, on routes) (request, error) {
	body, err := a.readBody(w, r)
	if err != nil {
		return request{}, err
	}
	return parse(body, on)
}

// disconnect closes connections; the backend has the defaults of code and reason.
func (a *api) disconnect(w http.ResponseWriter, r *http.Request) error {
	q, err := a.request(w, r, onDisconnect)
	if err != nil {
		return err
	}
	n, err := a.backend.Disconnect(r.Context(), q.to, q.code, q.reason)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, "application/json", struct {
		Disconnected int `json:"disconnected"`
	}{n})
	return nil
}
