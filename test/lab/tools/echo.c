// The echo server of every place: TCP and UDP, both families. The answer says which source address it saw.
#define _GNU_SOURCE
#include "echo.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct peer {  // a connection
  struct peer *next;
  int fd, have;
  char seen[48];
  char input[LARGEST];
};

static struct peer *peers;
static int listeners[16], datagrams[16], servers;
static char buffer[LARGEST];

static void name_of(struct sockaddr_in6 *from, char *text) {
  char full[48];
  struct sockaddr_in *four = (void *)from;
  if (from->sin6_family == AF_INET) {
    inet_ntop(AF_INET, &four->sin_addr, text, sizeof full);
    return;
  }
  inet_ntop(AF_INET6, &from->sin6_addr, full, sizeof full);
  strcpy(text, strncmp(full, "::ffff:", 7) ? full : full + 7);
}

int serve(int port, const char *at) {
  int one = 1, zero = 0, large = 1 << 23;
  struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  int tcp = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (tcp < 0 && errno == EAFNOSUPPORT) {  // a kernel that was booted without IPv6
    any.sin6_family = AF_INET;             // the port is at the same place
    tcp = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  }
  int udp = socket(any.sin6_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  setsockopt(tcp, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
  setsockopt(udp, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
  struct sockaddr_in6 own = any;
  if (!*at) {
    setsockopt(udp, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof one);
    if (any.sin6_family == AF_INET) setsockopt(udp, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
  } else if (strcmp(at, "any")) {
    char mapped[64];
    snprintf(mapped, sizeof mapped, strchr(at, ':') ? "%s" : "::ffff:%s", at);
    inet_pton(AF_INET6, mapped, &own.sin6_addr);
  }
  // A packet that waits here on a busy machine is not one that the network lost.
  setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large);
  if (servers == 16 || bind(tcp, (void *)&any, sizeof any) || listen(tcp, 128) || bind(udp, (void *)&own, sizeof own)) {
    close(tcp);
    close(udp);
    return -1;
  }
  listeners[servers] = tcp;
  datagrams[servers++] = udp;
  return 0;
}

// False once there is none left.
static int answer_datagram(int fd) {
  struct sockaddr_in6 from;
  char control[256];
  struct iovec data = {buffer, sizeof buffer};
  struct msghdr m = {&from, sizeof from, &data, 1, control, sizeof control, 0};
  ssize_t n = recvmsg(fd, &m, 0);
  if (n < HEADER) return n >= 0;
  name_of(&from, ((struct message *)buffer)->seen);
  // A node has several addresses: the answer must come from the one that was asked, by whatever link.
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
    if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
      struct in6_pktinfo *info = (void *)CMSG_DATA(c);
      if (!IN6_IS_ADDR_LINKLOCAL(&info->ipi6_addr)) info->ipi6_ifindex = 0;
    } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO && from.sin6_family == AF_INET) {
      ((struct in_pktinfo *)CMSG_DATA(c))->ipi_ifindex = 0;
    }
  data.iov_len = n;
  sendmsg(fd, &m, 0);
  return 1;
}

static void welcome(int fd) {
  struct sockaddr_in6 from;
  socklen_t length = sizeof from;
  int one = 1, large = 1 << 20, c = accept4(fd, (void *)&from, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (c < 0) return;
  setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(c, SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
  struct peer *p = calloc(1, sizeof *p);
  p->fd = c;
  name_of(&from, p->seen);
  p->next = peers;
  peers = p;
}

// Answers every whole message; false once the connection is of no more use.
static int answer_stream(struct peer *p) {
  ssize_t n = read(p->fd, p->input + p->have, sizeof p->input - p->have);
  if (n <= 0) return n < 0 && errno == EAGAIN;
  p->have += n;
  for (;;) {
    struct message *m = (void *)p->input;
    if (p->have < HEADER) return 1;
    if (m->length < HEADER || m->length > LARGEST) return 0;
    if (p->have < (int)m->length) return 1;
    int length = m->length;
    memcpy(m->seen, p->seen, sizeof m->seen);
    if (send(p->fd, p->input, length, MSG_NOSIGNAL) != length) return 0;
    memmove(p->input, p->input + length, p->have -= length);
  }
}

int echo_wants(struct pollfd *fds, int room) {
  int n = 0;
  for (int i = 0; i < servers; i++) {
    fds[n++] = (struct pollfd){listeners[i], POLLIN, 0};
    fds[n++] = (struct pollfd){datagrams[i], POLLIN, 0};
  }
  for (struct peer *p = peers; p && n < room; p = p->next) fds[n++] = (struct pollfd){p->fd, POLLIN, 0};
  return n;
}

void echo_answers(const struct pollfd *fds) {
  int all = servers, n = 2 * all;
  // Connections first, in the order in which they were listed: welcome() adds to them.
  for (struct peer **link = &peers; *link; n++) {
    struct peer *p = *link;
    if (fds[n].fd != p->fd) break;  // there was no room for this one
    if (fds[n].revents && !answer_stream(p)) {
      *link = p->next;
      close(p->fd);
      free(p);
    } else link = &p->next;
  }
  for (int i = 0; i < all; i++) {
    if (fds[2 * i].revents) welcome(listeners[i]);
    if (fds[2 * i + 1].revents)
      while (answer_datagram(datagrams[i])) {}
  }
}
