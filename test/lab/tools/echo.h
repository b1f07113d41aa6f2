// What place.c and its echo server share.
#include <poll.h>
#include <stdint.h>

// Bytes of the largest and the smallest message.
enum { LARGEST = 65536, HEADER = 72 };

// At the head of every packet. `seen` is filled in by the echo server.
struct message {
  uint32_t length, cookie;
  uint64_t number, sent_at;
  char seen[48];
};

// Answers TCP and UDP on one more port; -1 and errno if that is taken. UDP is answered from the address that was asked;
// with `at` "any" from whichever the kernel takes, as a server does that knows of one address only; else from and to `at`.
int serve(int port, const char *at);

// Adds what the echo server waits for to the list; how many that were.
int echo_wants(struct pollfd *fds, int room);

// Answers whatever came for the descriptors that echo_wants listed last.
void echo_answers(const struct pollfd *fds);
