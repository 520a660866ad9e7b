// Package server is the push server as a library: it keeps WebSocket connections,
// most of them idle, and delivers messages to a topic, a user, one connection or
// everybody. How do I …
//
// … accept clients?
//
//	srv, err := server.New(server.Config{Auth: auth})
//	if err != nil {
//		log.Fatal(err)
//	}
//	ln, err := net.Listen("tcp", "127.0.0.1:8080")
//	if err != nil {
//		log.Fatal(err)
//	}
//	log.Fatal(srv.Serve(ln)) // they connect to ws://127.0.0.1:8080/ws?topics=news
//
// … say who they are, until when, and what they may do?
//
//	auth := func(r *http.Request) (server.Identity, error) {
//		s, err := lookUp(r.Header.Get("Cookie"))
//		if err != nil {
//			return server.Identity{}, err // 401; an HTTPError has another status
//		}
//		return server.Identity{User: s.user, Expires: s.ends, Subscribe: []string{"news", "team-*"}, Data: s}, nil
//	}
//
// … publish?
//
//	receipt, err := srv.Publish(ctx, "news", server.Message{Data: []byte(`{"hi":1}`)})
//
// … push to every device of a user, and know that it has arrived?
//
//	receipt, err := srv.Push(ctx, server.Target{User: "42"}, server.Message{
//		Data: []byte(`{"for":"you"}`), Wait: server.WaitAck,
//	})
//	if errors.Is(err, server.ErrNobody) {
//		return // 42 has no connection
//	}
//
// … use what Auth attached, and give a connection its topics?
//
//	cfg.OnOpen = func(c server.Conn) {
//		if err := c.Subscribe("team-" + c.Data().(*session).team); err != nil {
//			log.Print(c.RemoteAddr(), err)
//		}
//	}
//
// … embed it in a mux, behind my middleware?
//
//	mux := http.NewServeMux()
//	mux.Handle("/push", srv)
//	web := &http.Server{Addr: ":8080", Handler: logged(mux)}
//
// … shut down?
//
//	err := srv.Shutdown(ctx) // clients are told when to come back
//
// A [Server]'s methods may be called by any goroutine. What a [Receipt] tells is
// what [Message].Wait waits for. Clients speak the protocol of docs/protocol.md;
// the HTTP API and the metrics are in package httpapi. The server runs on Linux.
// On other systems it builds, and New returns an error.
//
// # Goroutines
//
// New starts all of them, and Shutdown ends them: a poller, a ticker, at most
// Config.Workers that serve connections, and at most Config.HookWorkers. Their
// number does not depend on that of the connections. The hooks of a [Config] run
// on the last: they may block, and those of one connection run one at a time.
//
// # Not done here
//
// TLS, presence, compression. No history is kept here: a client that was away is
// told which messages it missed, and is given them if Config.Bus is a [History].
//
// docs/design.md tells how it works inside.
package server
