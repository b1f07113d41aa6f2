// forbid: runs a program under a kernel that refuses it something.
//
//   forbid memory COMMAND...                  executable memory that was ever writable, as SELinux without execmem
//   forbid netlink PROTOCOL ERRNO COMMAND...  the agent's own netlink sockets of PROTOCOL; those of ip and nft differ in type
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

static void die(const char *doing) {
  fprintf(stderr, "forbid: %s: %s\n", doing, strerror(errno));
  exit(125);
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define PASS_UNLESS(value, rest) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, rest)

static void refuse_sockets(unsigned protocol, unsigned error) {
  struct sock_filter filter[] = {
      LOAD(nr),
      PASS_UNLESS(SYS_socket, 7),
      LOAD(args[0]),
      PASS_UNLESS(AF_NETLINK, 5),
      LOAD(args[1]),
      PASS_UNLESS(SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 3),
      LOAD(args[2]),
      PASS_UNLESS(protocol, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) die("seccomp");
}

int main(int argc, char **argv) {
  char **command = argv + 2;
  if (argc > 2 && !strcmp(argv[1], "memory")) {
    if (prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)) die("PR_SET_MDWE (Linux 6.3 has it)");
  } else if (argc > 4 && !strcmp(argv[1], "netlink")) {
    refuse_sockets(atoi(argv[2]), atoi(argv[3]));
    command = argv + 4;
  } else {
    errno = EINVAL;
    die("arguments");
  }
  execvp(command[0], command);
  die(command[0]);
}
