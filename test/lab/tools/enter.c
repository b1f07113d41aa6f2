// enter: the lab's way in and out of namespaces. Everything it starts dies with whoever started it, so that a test
// that is killed, however hard, leaves no process and therefore no namespace behind.
//
//   enter run PID COMMAND...                   in the namespaces of PID (those that differ from ours)
//   enter net COMMAND...                       in a network namespace of its own
//   enter hold                                 reaps and waits: PID 1 of a node, or the keeper of a namespace
//   enter forward ADDRESS PORT PID TO TOPORT   listens here, connects from the network namespace of PID
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *doing) {
  fprintf(stderr, "enter: %s: %s\n", doing, strerror(errno));
  exit(125);
}

static int other_namespace(const char *pid, const char *kind, int *same) {
  char path[64], ours[64] = "", theirs[64] = "";
  snprintf(path, sizeof path, "/proc/self/ns/%s", kind);
  if (readlink(path, ours, sizeof ours - 1) < 0) die(path);
  snprintf(path, sizeof path, "/proc/%s/ns/%s", pid, kind);
  if (readlink(path, theirs, sizeof theirs - 1) < 0) die(path);
  *same = !strcmp(ours, theirs);
  if (*same) return -1;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) die(path);
  return fd;
}

static pid_t child;
static void pass_on(int signal) { kill(child, signal); }

static int run(char **argv) {
  static const char *kinds[] = {"net", "uts", "pid", "mnt"};
  int fds[4], same[4];
  for (int i = 0; i < 4; i++) fds[i] = other_namespace(argv[0], kinds[i], &same[i]);
  for (int i = 0; i < 4; i++) {
    if (!same[i] && setns(fds[i], 0)) die("setns");
    if (fds[i] >= 0) close(fds[i]);
  }
  if (!same[3] && chdir("/")) die("chdir");
  if (same[2]) {
    execvp(argv[1], argv + 1);
    die(argv[1]);
  }
  // A PID namespace is joined by children only: stay outside as the one who passes signals in and the status out.
  sigset_t all, before;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, &before);
  child = fork();
  if (child < 0) die("fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigprocmask(SIG_SETMASK, &before, NULL);
    execvp(argv[1], argv + 1);
    die(argv[1]);
  }
  for (int s = 1; s < NSIG; s++)
    if (s != SIGCHLD && s != SIGKILL && s != SIGSTOP && s != SIGSEGV && s != SIGABRT) signal(s, pass_on);
  sigprocmask(SIG_SETMASK, &before, NULL);
  int status;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) die("waitpid");
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  signal(WTERMSIG(status), SIG_DFL);
  raise(WTERMSIG(status));
  return 128 + WTERMSIG(status);
}

static void hold(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  sigprocmask(SIG_BLOCK, &set, NULL);
  for (;;) {
    int signal;
    sigwait(&set, &signal);
    while (waitpid(-1, NULL, WNOHANG) > 0) {}
  }
}

static socklen_t parse(const char *address, const char *port, struct sockaddr_in6 *to) {
  struct sockaddr_in *four = (void *)to;
  memset(to, 0, sizeof *to);
  to->sin6_port = htons(atoi(port));  // at the same place in both
  if (inet_pton(AF_INET, address, &four->sin_addr) == 1) return four->sin_family = AF_INET, sizeof *four;
  if (inet_pton(AF_INET6, address, &to->sin6_addr) == 1) return to->sin6_family = AF_INET6, sizeof *to;
  fprintf(stderr, "enter: not an address: %s\n", address);
  exit(125);
}

static void copy_both_ways(int a, int b) {
  struct pollfd fds[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
  static char data[65536];
  for (int open = 2; open > 0;) {
    if (poll(fds, 2, -1) < 0) return;
    for (int i = 0; i < 2; i++) {
      if (!fds[i].revents) continue;
      int to = i ? a : b;
      ssize_t n = read(fds[i].fd, data, sizeof data);
      if (n < 0) return;
      if (n == 0) {
        shutdown(to, SHUT_WR);
        fds[i].fd = -1;
        open--;
      }
      for (ssize_t sent = 0, m; sent < n; sent += m)
        if ((m = write(to, data + sent, n - sent)) <= 0) return;
    }
  }
}

static int forward(char **argv) {
  struct sockaddr_in6 here, there;
  socklen_t length = parse(argv[0], argv[1], &here), there_length = parse(argv[3], argv[4], &there);
  int one = 1, zero = 0, listener = socket(here.sin6_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (void *)&here, length) || listen(listener, 64)) die("listen");
  getsockname(listener, (void *)&here, &length);
  int same, fd = other_namespace(argv[2], "net", &same);
  if (!same && setns(fd, CLONE_NEWNET)) die("setns");
  signal(SIGCHLD, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  printf("%d\n", ntohs(here.sin6_port));
  fflush(stdout);
  for (;;) {
    int from = accept(listener, NULL, NULL);
    if (from < 0) continue;
    if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      close(listener);
      int to = socket(there.sin6_family, SOCK_STREAM, 0);
      if (connect(to, (void *)&there, there_length) == 0) copy_both_ways(from, to);
      _exit(0);
    }
    close(from);
  }
}

int main(int argc, char **argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (argc >= 4 && !strcmp(argv[1], "run")) return run(argv + 2);
  if (argc >= 3 && !strcmp(argv[1], "net")) {
    if (unshare(CLONE_NEWNET)) die("unshare");
    execvp(argv[2], argv + 2);
    die(argv[2]);
  }
  if (argc == 2 && !strcmp(argv[1], "hold")) hold();
  if (argc == 7 && !strcmp(argv[1], "forward")) return forward(argv + 2);
  fprintf(stderr, "enter: run PID COMMAND... | net COMMAND... | hold | forward ADDRESS PORT PID TO TOPORT\n");
  return 2;
}
