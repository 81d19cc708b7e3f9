// refuse CALLS ERRNO FROM COUNT PATH LOG -- PROGRAM ARGUMENT…
//
// Runs a program whose calls of the kernel fail: those of the kind CALLS (write, sync, close, rename, link, create)
// on files whose path holds PATH, from the FROM-th on, COUNT of them (0: all), with ERRNO. Each refused call is a line
// in the file LOG. It is done by a seccomp filter whose notifications are answered here, so that it does not matter by
// which library, or past which, a program calls the kernel.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <poll.h>
#include <unistd.h>

struct kind { const char *name; int calls[8]; int path_argument; };
// Of calls without a path argument the first argument is the file.
static const struct kind kinds[] = {
    {"write", {SYS_write, SYS_pwrite64, SYS_writev, SYS_pwritev, SYS_pwritev2, SYS_copy_file_range, SYS_fallocate, -1}, -1},
    {"sync", {SYS_fsync, SYS_fdatasync, SYS_sync_file_range, SYS_syncfs, -1}, -1},
    {"close", {SYS_close, -1}, -1},
    {"create", {SYS_openat, SYS_mkdirat, -1}, 1},
    {"create1", {SYS_mkdir, -1}, 0},
    {"rename", {SYS_renameat, SYS_renameat2, -1}, 1},
    {"rename1", {SYS_rename, -1}, 0},
    {"link", {SYS_linkat, -1}, 1},
    {"link1", {SYS_link, -1}, 0},
};

static void die(const char *what) { perror(what); exit(99); }

static int install(const char *wanted) {
    struct sock_filter filter[64];
    int n = 0;
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        if (strncmp(kinds[k].name, wanted, strlen(wanted))) continue;
        for (const int *call = kinds[k].calls; *call != -1; call++) {
            filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, *call, 0, 1);
            filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
        }
    }
    // io_uring would pass by; it is refused, as many hosts do.
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {n, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
    int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (listener < 0) die("seccomp");
    return listener;
}

// The child has told the number of its listener, and waits until that is taken.
static int take(pid_t child, int channel) {
    int number;
    if (recv(channel, &number, sizeof number, 0) != sizeof number) exit(99);
    int pidfd = syscall(SYS_pidfd_open, child, 0);
    int listener = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, number, 0);
    if (listener < 0) die("pidfd_getfd");
    return listener;
}

static void path_of(const struct seccomp_notif *call, int argument, char *path, size_t size) {
    char name[64];
    ssize_t length;
    if (argument < 0) {
        snprintf(name, sizeof name, "/proc/%u/fd/%d", call->pid, (int)call->data.args[0]);
        length = readlink(name, path, size - 1);
    } else {
        snprintf(name, sizeof name, "/proc/%u/mem", call->pid);
        int memory = open(name, O_RDONLY | O_CLOEXEC);
        length = pread(memory, path, size - 1, call->data.args[argument]);
        close(memory);
    }
    path[length > 0 ? length : 0] = 0;
}

int main(int argc, char **argv) {
    if (argc < 9 || strcmp(argv[7], "--")) return fprintf(stderr, "refuse: see its source\n"), 99;
    const char *wanted = argv[1], *part = argv[5];
    long code = atol(argv[2]), from = atol(argv[3]), count = atol(argv[4]), seen = 0;
    int log = open(argv[6], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600), channel[2];
    if (log < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel)) die("refuse");
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int listener = install(wanted);
        // Not by write, which nobody would answer yet.
        char go;
        if (send(channel[1], &listener, sizeof listener, 0) < 0 || recv(channel[1], &go, 1, 0) != 1) _exit(99);
        execvp(argv[8], argv + 8);
        _exit(99);
    }
    int listener = take(child, channel[0]);
    if (send(channel[0], "", 1, 0) != 1) die("refuse");
    struct pollfd ready = {listener, POLLIN, 0};
    for (;;) {
        int status;
        if (waitpid(child, &status, WNOHANG) == child) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (poll(&ready, 1, 20) <= 0) continue;
        struct seccomp_notif call = {0};
        struct seccomp_notif_resp answer = {0};
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) continue;
        int argument = -1;
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
            for (const int *other = kinds[k].calls; *other != -1; other++)
                if (*other == call.data.nr) argument = kinds[k].path_argument;
        char path[4096];
        path_of(&call, argument, path, sizeof path);
        answer.id = call.id;
        answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        // No file system fails to close a directory, and Rust's library relies on it.
        struct stat of;
        if (call.data.nr == SYS_close && !stat(path, &of) && S_ISDIR(of.st_mode)) path[0] = 0;
        int creates = call.data.nr != SYS_openat || (call.data.args[2] & O_CREAT);
        // A file system is synced by whatever file of it is at hand.
        if (creates && (strstr(path, part) || call.data.nr == SYS_syncfs)) {
            seen++;
            if (seen >= from && (count == 0 || seen < from + count)) {
                answer.flags = 0;
                answer.error = -code;
                dprintf(log, "%d %s\n", call.data.nr, path);
            }
        }
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
}
