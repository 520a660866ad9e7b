package server
import ("context";"net";"net/http";"github.com/tocsin-push/tocsin/wire";"errors";"github.com/gobwas/ws")
const maxTimeout = 0
type kernel interface{}
type fanout struct{}
func physicalMemory() int64 {return 1<<30}
// Server keeps connections and delivers messages to them.
type Server struct{}
var errX = errors.New("x")
func New(cfg Config) (*Server, error) { return nil, errX }
// Serve accepts on ln until Shutdown; ln is a *net.TCPListener (its descriptor is taken). Returns ErrClosed after Shutdown.
func (s *Server) Serve(ln net.Listener) error { return errX }
// ServeHTTP takes over a connection from net/http.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {}
// Publish sends m to the subscribers of topic.
func (s *Server) Publish(ctx context.Context, topic string, m Message) (Receipt, error) { return Receipt{}, errX }
// Push sends m to every device of a user, or one connection, on topic $user.
func (s *Server) Push(ctx context.Context, to Target, m Message) (Receipt, error) { return Receipt{}, errX }
// Broadcast sends m to every open connection, on topic $all.
func (s *Server) Broadcast(ctx context.Context, m Message) (Receipt, error) { return Receipt{}, errX }
// Disconnect closes the target's connections; returns how many.
func (s *Server) Disconnect(ctx context.Context, to Target, code wire.CloseCode, reason string) (int, error) { return 0, errX }
// User lists the ids of a user's connections.
func (s *Server) User(name string) []string { return nil }
// Topic tells position and number of subscribers; ok is false if it has none.
func (s *Server) Topic(name string) (at Position, subscribers int, ok bool) { return }
func (s *Server) Stats() Stats { return Stats{} }
// Shutdown drains...
func (s *Server) Shutdown(ctx context.Context) error { return nil }
// Conn is a handle of one connection for hooks; a small value, may be kept, harmless after the connection ended.
type Conn struct{ srv *Server; ref uint64 }
func (c Conn) ID() string { return "" }
func (c Conn) User() string { return "" }
// Send queues a frame for the connection (op text or binary). Any goroutine. Copied.
func (c Conn) Send(op ws.OpCode, payload []byte) error { return nil }
// Close starts the closing handshake.
func (c Conn) Close(code wire.CloseCode, reason string) error { return nil }
