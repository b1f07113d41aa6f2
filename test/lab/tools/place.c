// place: one small process in every place of the lab (pod, node, outside). It answers TCP and UDP echo on port 7,
// and sends numbered packets to other places as it is told on stdin, one command a line:
//
//   reach ID PROTOCOL ADDRESS PORT SIZE DF TIMEOUT-MS SOURCE      ->  ID ok RTT-US SEEN | ID failed REASON
//   talk ID PROTOCOL ADDRESS PORT SIZE MESSAGES INTERVAL-MS TIMEOUT-MS SOURCE  ->  the same, once all have come back
//   start ID PROTOCOL ADDRESS PORT SIZE DF PER-SECOND SOURCE      ->  ID ok | ID failed REASON
//   count ID STREAM   ->  ID ok SENT RECEIVED LONGEST-GAP-MS SLOWEST-MS RETRANSMITTED ERROR
//   stop ID STREAM GRACE-MS   ->  the same, once everything came back or after the grace
//   raw ID ADDRESS HEX   ->  ID ok | ID failed REASON: an ICMP message as it is, but for ICMPv6's checksum
//   listen ID PORT [any | ADDRESS]   ->  ID ok: TCP and UDP echo on one more port; UDP as serve() has it
//
// PROTOCOL is tcp, udp or icmp; SOURCE an address, a port as `:7`, or `-`. SIZE is the whole IP packet's for udp and icmp, the
// message's for tcp. SEEN is the address that the echo server saw, `-` for icmp.
#define _GNU_SOURCE
#include "echo.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum protocol { TCP, UDP, ICMP };
static const char *protocols[] = {"tcp", "udp", "icmp"};

struct task {
  struct task *next;
  char id[32], stop_id[32], error[64];
  int fd, stream, connected, over;
  enum protocol protocol;
  struct sockaddr_in6 to;  // large enough for either family
  uint32_t cookie;
  int length;  // of the message, without any header
  uint64_t interval, next_at, deadline, last_received, longest_gap, slowest;
  uint64_t sent, received, seen_limit, wanted;  // wanted: how many messages; of a stream, no end
  uint8_t *seen;  // one bit a number
  char *input;
  int have;
};

static struct task *tasks;
static char buffer[LARGEST];

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

// --- what we send ------------------------------------------------------------------------------------------------

static int address(const char *text, int port, struct sockaddr_in6 *a) {
  struct sockaddr_in *four = (void *)a;
  memset(a, 0, sizeof *a);
  if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons(port);
    return sizeof *four;
  }
  if (inet_pton(AF_INET6, text, &a->sin6_addr) != 1) return 0;
  a->sin6_family = AF_INET6;
  a->sin6_port = htons(port);
  return sizeof *a;
}

static void fail(struct task *t, const char *reason) {
  if (!t->stream && !t->over) printf("%s failed %s\n", t->id, reason);
  snprintf(t->error, sizeof t->error, "%s", reason);
  for (char *c = t->error; *c; c++)
    if (*c == ' ') *c = '_';
  if (!t->stream || t->protocol == TCP) t->over = 1;
}

static void send_next(struct task *t) {
  int four = t->to.sin6_family == AF_INET, head = t->protocol == ICMP ? 8 : 0, total = t->length + head;
  memset(buffer, 0, total);
  struct message *m = (void *)(buffer + head);
  m->length = t->length;
  m->cookie = t->cookie;
  m->number = t->sent++;
  m->sent_at = now();
  if (t->protocol == ICMP) {
    buffer[0] = four ? ICMP_ECHO : ICMP6_ECHO_REQUEST;
    memcpy(buffer + 4, &t->cookie, 2);
    *(uint16_t *)(buffer + 6) = htons(t->sent);
    if (four) {  // the kernel computes ICMPv6's checksum itself
      uint32_t sum = 0;
      for (int i = 0; i < total; i += 2) sum += (uint8_t)buffer[i] | (i + 1 < total ? (uint8_t)buffer[i + 1] << 8 : 0);
      sum = (sum >> 16) + (sum & 0xffff);
      *(uint16_t *)(buffer + 2) = ~(sum + (sum >> 16));
    }
  }
  // An ICMP error for an earlier packet is reported by the next call: take it, then send.
  ssize_t n = send(t->fd, buffer, total, MSG_NOSIGNAL);
  if (n < 0 && t->stream && t->protocol != TCP) n = send(t->fd, buffer, total, MSG_NOSIGNAL);
  if (n != total) fail(t, n < 0 ? strerror(errno) : "send buffer full");
}

static int open_socket(struct task *t, const char *source, int dont_fragment) {
  int four = t->to.sin6_family == AF_INET, family = t->to.sin6_family, one = 1, large = 1 << 23;
  int type = t->protocol == TCP ? SOCK_STREAM : t->protocol == UDP ? SOCK_DGRAM : SOCK_RAW;
  int number = t->protocol != ICMP ? 0 : four ? (int)IPPROTO_ICMP : (int)IPPROTO_ICMPV6;
  t->fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, number);
  if (t->fd < 0) return -1;
  setsockopt(t->fd, SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
  // A packet that waits here on a busy machine is not one that the network lost.
  if (t->protocol != TCP) setsockopt(t->fd, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large);
  if (t->protocol == TCP) setsockopt(t->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (t->protocol != TCP) {
    int discover = dont_fragment ? (four ? IP_PMTUDISC_DO : IPV6_PMTUDISC_DO) : (four ? IP_PMTUDISC_DONT : IPV6_PMTUDISC_WANT);
    setsockopt(t->fd, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_MTU_DISCOVER : IPV6_MTU_DISCOVER, &discover, sizeof discover);
    if (!four && dont_fragment) setsockopt(t->fd, IPPROTO_IPV6, IPV6_DONTFRAG, &one, sizeof one);
  }
  if (t->protocol == ICMP && four) {
    uint32_t mask = ~(1u << ICMP_ECHOREPLY);
    setsockopt(t->fd, SOL_RAW, 1 /* ICMP_FILTER */, &mask, sizeof mask);
  } else if (t->protocol == ICMP) {
    struct icmp6_filter filter;
    ICMP6_FILTER_SETBLOCKALL(&filter);
    ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &filter);
    setsockopt(t->fd, IPPROTO_ICMPV6, ICMP6_FILTER, &filter, sizeof filter);
  }
  struct sockaddr_in6 from;
  int length = four ? sizeof(struct sockaddr_in) : sizeof from;
  if (strcmp(source, "-")) {
    int port = *source == ':' && isdigit(source[1]) ? atoi(source + 1) : 0;  // several sockets may have the same
    if (port) setsockopt(t->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (address(port ? four ? "0.0.0.0" : "::" : source, port, &from) != length) return errno = EAFNOSUPPORT, -1;
    if (bind(t->fd, (void *)&from, length)) return -1;
  }
  if (connect(t->fd, (void *)&t->to, length) && errno != EINPROGRESS) return -1;
  t->connected = t->protocol != TCP;
  return 0;
}

static void came_back(struct task *t, struct message *m) {
  uint64_t at = now();
  if (m->cookie != t->cookie || m->number >= t->sent) return;
  if (m->number >= t->seen_limit) {
    uint64_t limit = (m->number + 65536) / 65536 * 65536;
    t->seen = realloc(t->seen, limit / 8);
    memset(t->seen + t->seen_limit / 8, 0, (limit - t->seen_limit) / 8);
    t->seen_limit = limit;
  }
  if (t->seen[m->number / 8] >> (m->number % 8) & 1) return;
  t->seen[m->number / 8] |= 1 << (m->number % 8);
  t->received++;
  if (at - t->last_received > t->longest_gap) t->longest_gap = at - t->last_received;
  if (at - m->sent_at > t->slowest) t->slowest = at - m->sent_at;
  t->last_received = at;
  if (t->stream || t->received < t->wanted) return;
  printf("%s ok %lu %s\n", t->id, (at - m->sent_at) / 1000, t->protocol == ICMP ? "-" : m->seen);
  t->over = 1;
}

static void receive(struct task *t, short events) {
  if (!t->connected) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) return fail(t, strerror(error));
    if (!(events & POLLOUT)) return;
    t->connected = 1;
    t->next_at = now();
    return;
  }
  if (t->protocol == TCP) {
    ssize_t n = read(t->fd, t->input + t->have, LARGEST - t->have);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return fail(t, n ? strerror(errno) : "connection closed by the other side");
    t->have += n;
    while (t->have >= t->length) {
      came_back(t, (void *)t->input);
      memmove(t->input, t->input + t->length, t->have -= t->length);
    }
    return;
  }
  for (ssize_t n; (n = recv(t->fd, buffer, sizeof buffer, 0)) >= 0 && !t->over;) {
    int head = t->protocol == UDP ? 0 : t->to.sin6_family == AF_INET ? (buffer[0] & 15) * 4 + 8 : 8;
    if (n == head + t->length) came_back(t, (void *)(buffer + head));
  }
  if (!t->over && errno != EAGAIN) fail(t, strerror(errno));
}

static void report(struct task *t, const char *id) {
  struct tcp_info info = {0};
  socklen_t length = sizeof info;
  if (t->protocol == TCP) getsockopt(t->fd, IPPROTO_TCP, TCP_INFO, &info, &length);
  uint64_t silence = t->received < t->sent ? now() - t->last_received : 0;
  printf("%s ok %lu %lu %.1f %.1f %u %s\n", id, t->sent, t->received,
         (silence > t->longest_gap ? silence : t->longest_gap) / 1e6, t->slowest / 1e6, info.tcpi_total_retrans,
         *t->error ? t->error : "-");
}

// --- commands and the loop ---------------------------------------------------------------------------------------

// `messages` 0 makes a stream.
static void make(int messages, int interval, char *id, char *protocol, char *to, int port, int size, int df, int number, char *source) {
  struct task *t = calloc(1, sizeof *t);
  int stream = messages == 0;
  snprintf(t->id, sizeof t->id, "%s", id);
  t->fd = -1;
  t->stream = stream;
  while (t->protocol < ICMP && strcmp(protocols[t->protocol], protocol)) t->protocol++;
  t->next = tasks;
  tasks = t;
  getrandom(&t->cookie, sizeof t->cookie, 0);
  if (!address(to, port, &t->to)) return fail(t, "not an address");
  int headers = t->protocol == TCP ? 0 : (t->to.sin6_family == AF_INET ? 20 : 40) + 8;
  t->length = size - headers < HEADER ? HEADER : size - headers;
  if (t->length + 8 > LARGEST) return fail(t, "size too large");
  if (t->protocol == TCP) t->input = malloc(LARGEST);
  t->last_received = t->next_at = now();
  t->wanted = messages;
  t->interval = stream ? 1000000000ull / number : interval * 1000000ull;
  if (interval) t->next_at += t->cookie % t->interval;  // those that begin together send at different times
  if (!stream) t->deadline = now() + number * 1000000ull;
  if (open_socket(t, source, df)) {
    if (stream) printf("%s failed %s\n", id, strerror(errno));
    fail(t, strerror(errno));
    t->over = 1;
    t->stream = 0;
  } else if (stream) {
    printf("%s ok\n", id);
  }
}

static const char *send_raw(const char *to, const char *hex) {
  struct sockaddr_in6 a;
  unsigned byte;
  int n = 0, length = address(to, 0, &a), four = length == sizeof(struct sockaddr_in);
  if (!length) return "not an address";
  for (; n < 1000 && sscanf(hex + 2 * n, "%2x", &byte) == 1; n++) buffer[n] = byte;
  int fd = socket(a.sin6_family, SOCK_RAW | SOCK_CLOEXEC, four ? (int)IPPROTO_ICMP : (int)IPPROTO_ICMPV6);
  const char *reason = fd < 0 || sendto(fd, buffer, n, 0, (void *)&a, length) != n ? strerror(errno) : NULL;
  if (fd >= 0) close(fd);
  return reason;
}

static void command(char *line) {
  char verb[16], id[32], a[64], b[64], source[64];
  int port, size, df, number, messages, interval;
  if (sscanf(line, "talk %31s %63s %63s %d %d %d %d %d %63s", id, a, b, &port, &size, &messages, &interval, &number, source) == 9)
    return make(messages, interval, id, a, b, port, size, 0, number, source);
  if (sscanf(line, "%15s %31s %63s %63s %d %d %d %d %63s", verb, id, a, b, &port, &size, &df, &number, source) == 9)
    return make(strcmp(verb, "start") != 0, 0, id, a, b, port, size, df, number, source);
  static char hex[4096];
  if (sscanf(line, "raw %31s %63s %4095s", id, a, hex) == 3) {
    const char *reason = send_raw(a, hex);
    printf(reason ? "%s failed %s\n" : "%s ok\n", id, reason);
    return;
  }
  *a = 0;
  if (sscanf(line, "listen %31s %d %63s", id, &port, a) >= 2) {
    if (serve(port, a)) printf("%s failed %s\n", id, strerror(errno));
    else printf("%s ok\n", id);
    return;
  }
  number = 0;
  if (sscanf(line, "%15s %31s %63s %d", verb, id, a, &number) >= 3)
    for (struct task *t = tasks; t; t = t->next) {
      if (!t->stream || strcmp(t->id, a)) continue;
      if (!strcmp(verb, "count")) return report(t, id);
      snprintf(t->stop_id, sizeof t->stop_id, "%s", id);
      t->deadline = now() + number * 1000000ull;
      return;
    }
  printf("%s failed no such command or stream\n", id);
}

// Sends what is due, ends what is over, and says when to look again.
static uint64_t tick(void) {
  uint64_t at = now(), wake = at + 1000000000ull;
  for (struct task **link = &tasks; *link;) {
    struct task *t = *link;
    int stopping = *t->stop_id, due = t->connected && !t->over && !stopping && at >= t->next_at;
    if (due && (t->stream || t->sent < t->wanted)) {
      send_next(t);
      t->next_at += t->interval;
      if (t->next_at < at) t->next_at = at;  // held up: no burst to catch up with
    }
    if (!t->stream && !t->over && at >= t->deadline) {
      char some[64];
      snprintf(some, sizeof some, "%lu of %lu came back", t->received, t->wanted);
      fail(t, t->received ? some : t->connected ? "no answer" : "no connection");
    }
    int ended = stopping && (t->over || t->received == t->sent || at >= t->deadline);
    if (ended) report(t, t->stop_id);
    if (ended || (t->over && !t->stream)) {
      *link = t->next;
      if (t->fd >= 0) close(t->fd);
      free(t->input);
      free(t->seen);
      free(t);
      continue;
    }
    if (t->deadline && t->deadline < wake) wake = t->deadline;
    if ((t->stream || t->sent < t->wanted) && t->connected && !t->over && !stopping && t->next_at < wake) wake = t->next_at;
    link = &t->next;
  }
  return wake;
}

int main(void) {
  static struct pollfd fds[8192];
  static char line[4096];
  int have = 0;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGPIPE, SIG_IGN);
  struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  ioctl(fd, SIOCSIFFLAGS, &lo);
  close(fd);
  fcntl(0, F_SETFL, O_NONBLOCK);
  if (serve(7, "")) return perror("place: port 7"), 1;
  printf("ready %d\n", getpid());
  for (;;) {
    uint64_t wake = tick(), at = now();
    fflush(stdout);
    fds[0] = (struct pollfd){0, POLLIN, 0};
    int echo = 1 + echo_wants(fds + 1, 4096), n = echo;
    for (struct task *t = tasks; t && n < 8192; t = t->next)
      fds[n++] = (struct pollfd){t->over ? -1 : t->fd, t->connected ? POLLIN : POLLIN | POLLOUT, 0};
    struct timespec wait = {(wake - at) / 1000000000ull, (wake - at) % 1000000000ull};
    if (wake <= at) wait = (struct timespec){0, 0};
    if (ppoll(fds, n, &wait, NULL) < 0) continue;
    n = echo;
    for (struct task *t = tasks; t && n < 8192; t = t->next, n++)
      if (fds[n].revents) receive(t, fds[n].revents);
    echo_answers(fds + 1);
    if (!fds[0].revents) continue;
    ssize_t got = read(0, line + have, sizeof line - 1 - have);
    if (got == 0) return 0;  // whoever gave the commands is gone
    if (got < 0) continue;
    line[have += got] = 0;
    char *start = line, *end;
    for (; (end = strchr(start, '\n')); start = end + 1) {
      *end = 0;
      command(start);
    }
    memmove(line, start, have -= start - line);
  }
}
