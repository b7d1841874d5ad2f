/*
 * vnetpods: the CNI plugin that a container runtime starts. It decides nothing and parses no JSON: it passes a call
 * (CNI_* environment, stdin) to this node's agent and returns the agent's stdout and exit code. The frame is described
 * in docs/architecture.md, "Between shim and agent"; the agent's end is vnetpods_agent/cni/frames.py.
 *
 * It does three things itself, because only this process can:
 *
 *  - It opens the sandbox (the doors). It runs on the host as root, so it opens CNI_NETNS, creates a NETLINK_ROUTE
 *    socket inside, and passes both descriptors on (SCM_RIGHTS). So the agent needs neither setns nor SYS_ADMIN nor the
 *    host's PIDs.
 *  - It spools DEL while the agent is away. A failing DEL makes a pod undeletable, and on a full node the agent's own
 *    new pod then never starts. A DEL succeeds once it is in the spool, synced. Only DEL is spooled: a GC executed
 *    later than it was requested would remove pods added in between.
 *  - It answers when the agent doesn't, in a sentence that makes sense in `kubectl describe pod`.
 *
 * One thread, one process per call, no allocation: every buffer has a fixed size, and a larger call is refused. Every
 * wait ends at the call's deadline. A caller that kills this process closes the connection, which tells the agent that
 * the caller is gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/netlink.h>

#ifndef SHIM_VERSION
#define SHIM_VERSION "unknown"
#endif
#ifndef SOCKET_PATH
#define SOCKET_PATH "/run/vnetpods/agent.sock"
#endif
#ifndef SPOOL_PATH
#define SPOOL_PATH "/var/lib/vnetpods/spool"
#endif
#ifndef BOOT_ID_PATH
#define BOOT_ID_PATH "/proc/sys/kernel/random/boot_id"
#endif

/* Shorter than the callers' own: the kubelet gives up after 4 minutes, containerd and CRI-O after 2 to 4. */
#ifndef ADD_DEADLINE_MS
#define ADD_DEADLINE_MS 110000
#endif
/* Spooling a DEL loses nothing, so a hung agent delays deletions no longer than this. */
#ifndef DEL_DEADLINE_MS
#define DEL_DEADLINE_MS 15000
#endif
#ifndef STATUS_DEADLINE_MS
#define STATUS_DEADLINE_MS 5000
#endif
/* How long an ADD waits for an absent agent: about the duration of an upgrade. */
#ifndef AGENT_RETURN_MS
#define AGENT_RETURN_MS 10000
#endif

/* The protocol version of requests. The agent answers in it, or in its own if that is earlier. */
#ifndef PROTOCOL
#define PROTOCOL 2
#endif
#define ENVIRONMENT_CAP (64 * 1024)
#define STDIN_CAP (1024 * 1024)
#define ANSWER_CAP (1024 * 1024)
#define FIXED_HEADER 20
#if PROTOCOL >= 2
#define EXTRA 46 /* errno of CNI_NETNS (u16), CLOCK_BOOTTIME in ns (u64), boot id (36 characters) */
#else
#define EXTRA 0
#endif
#define BOOT_ID 36
#define REQUEST_HEADER (FIXED_HEADER + EXTRA)
#define ANSWER_HEADER 12
#define FLAG_DOORS 1
#define FLAG_REPLAYED 2
#define PIPE_ROOM 4096 /* what a pipe ready for writing accepts without blocking: PIPE_BUF */
#define PRINT_MS 1000  /* the minimum time for writing an answer */
/*
 * The spool's bounds: calls, and bytes of environment and of stdin in each. While the agent is away for hours and the
 * runtime retries the same pods, each sandbox that never had an address adds a DEL.
 */
#ifndef SPOOL_CAP
#define SPOOL_CAP 4096
#endif
#define SPOOLED_PART_CAP 8192

/* CNI specification 1.1.0, section "Error". */
enum {
    CODE_ENVIRONMENT = 4,
    CODE_IO = 5,
    CODE_CONFIGURATION = 7,
    CODE_LATER = 11,
    CODE_NOT_AVAILABLE = 50,
};

enum verb { OTHER, ADD, DEL, CHECK, GC, STATUS, VERSION };

struct command {
    const char *name;
    enum verb verb;
    int deadline_ms;
    bool doors;
};

static const struct command commands[] = {
    {"ADD", ADD, ADD_DEADLINE_MS, true},
    {"DEL", DEL, DEL_DEADLINE_MS, false},
    {"CHECK", CHECK, ADD_DEADLINE_MS, true},
    {"GC", GC, ADD_DEADLINE_MS, false},
    {"STATUS", STATUS, STATUS_DEADLINE_MS, false},
    {"VERSION", VERSION, STATUS_DEADLINE_MS, false},
    {NULL, OTHER, STATUS_DEADLINE_MS, false},
};

/* The result of an attempt to reach the agent. */
enum outcome {
    ANSWERED,
    UNREACHABLE, /* no listener; errno has the reason */
    LOST,        /* the agent closed the connection without a complete answer */
    EXPIRED,     /* the deadline passed */
    GARBLED,     /* no valid answer */
};

static struct {
    const struct command *command;
    int64_t deadline; /* CLOCK_MONOTONIC, in ms */
    const char *socket_path;
    const char *spool_path;
    int doors[2]; /* network namespace and netlink socket, or -1 */
    int doors_errno; /* why there are none */
    size_t environment_size;
    size_t stdin_size;
    uint8_t answer_protocol;
    uint8_t exit_code;
    size_t answer_size;
} call;

/* Header, environment and stdin in sequence; one byte more, to detect an excess. */
static uint8_t request[REQUEST_HEADER + ENVIRONMENT_CAP + STDIN_CAP + 1];
static uint8_t answer[ANSWER_HEADER + ANSWER_CAP];

static const char *path_from(const char *variable, const char *otherwise)
{
    const char *path = getenv(variable);

    return path != NULL && *path != '\0' ? path : otherwise;
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits until the descriptor is ready; false if the deadline comes first. */
static bool wait_for(int fd, short events)
{
    for (;;) {
        int64_t left = call.deadline - now_ms();
        struct pollfd waited = {.fd = fd, .events = events, .revents = 0};
        int ready = left > 0 ? poll(&waited, 1, (int)left) : 0;

        if (ready > 0)
            return true;
        if (left <= 0 || (ready < 0 && errno != EINTR && errno != EAGAIN))
            return false;
    }
}

static void cleanup_fd(int *fd)
{
    int kept = errno;

    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    errno = kept;
}

/* Writes all bytes, or returns false with errno; on a non-blocking descriptor never waits past the deadline. */
static bool write_all(int fd, const uint8_t *bytes, size_t size)
{
    while (size > 0) {
        ssize_t written = write(fd, bytes, size);

        if (written < 0) {
            if (errno == EINTR || (errno == EAGAIN && wait_for(fd, POLLOUT)))
                continue;
            return false;
        }
        bytes += written;
        size -= (size_t)written;
    }
    return true;
}

/* For stdout, whose reader may be slow or gone: writes pieces that fit, so that no write outlasts the deadline. */
static bool print_all(const uint8_t *bytes, size_t size)
{
    if (call.deadline < now_ms() + PRINT_MS)
        call.deadline = now_ms() + PRINT_MS;
    while (size > 0) {
        size_t piece = size < PIPE_ROOM ? size : PIPE_ROOM;

        if (!wait_for(STDOUT_FILENO, POLLOUT)) {
            errno = ETIMEDOUT;
            return false;
        }
        if (!write_all(STDOUT_FILENO, bytes, piece))
            return false;
        bytes += piece;
        size -= piece;
    }
    return true;
}

/* Never waits: a log line isn't worth it. */
__attribute__((format(printf, 1, 2))) static void log_line(const char *format, ...)
{
    char line[1024];
    struct pollfd taken = {.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (poll(&taken, 1, 0) > 0)
        dprintf(STDERR_FILENO, "vnetpods: %s\n", line);
}

/* The configuration's cniVersion, as far as it can be found without parsing JSON; otherwise 1.1.0. */
static const char *asked_version(void)
{
    static char version[16];
    static const char key[] = "\"cniVersion\"";
    const uint8_t *input = request + REQUEST_HEADER + call.environment_size;
    const uint8_t *end = input + call.stdin_size;
    const uint8_t *at = memmem(input, call.stdin_size, key, sizeof key - 1);
    size_t length = 0;

    if (at != NULL) {
        at += sizeof key - 1;
        while (at < end && *at != '\0' && strchr(" \t\r\n:\"", *at) != NULL)
            at++;
        while (at < end && length < sizeof version - 1 && ((*at >= '0' && *at <= '9') || *at == '.'))
            version[length++] = (char)*at++;
    }
    version[length] = '\0';
    return length > 0 ? version : "1.1.0";
}

/* Appends text to a JSON string; omits what doesn't fit or isn't printable ASCII. */
static size_t append_json(char *json, size_t size, size_t at, const char *text)
{
    for (; *text != '\0' && at + 3 < size; text++) {
        if (*text == '"' || *text == '\\')
            json[at++] = '\\';
        if (*text >= ' ' && *text <= '~')
            json[at++] = *text;
    }
    return at;
}

/* Ends the call with a CNI error. `details` says what to do; runtimes print it after the message. */
__attribute__((format(printf, 3, 4), noreturn)) static void fail(int code, const char *details, const char *format, ...)
{
    char message[1024], quoted[2][2048], body[sizeof quoted + 256];
    va_list arguments;
    int size;

    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    quoted[0][append_json(quoted[0], sizeof quoted[0], 0, message)] = '\0';
    quoted[1][append_json(quoted[1], sizeof quoted[1], 0, details)] = '\0';
    size = snprintf(body, sizeof body, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s\",\"details\":\"%s\"}\n",
                    asked_version(), code, quoted[0], quoted[1]);
    print_all((const uint8_t *)body, (size_t)size);
    exit(EXIT_FAILURE);
}

/*
 * If one of the first three descriptors is closed at the start, a socket or file would take its number. Open ones need
 * no replacement: a caller may limit us to three (RLIMIT_NOFILE), and what then fails reports it itself.
 */
static void hold_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) {
            if (fcntl(STDOUT_FILENO, F_GETFD) >= 0)
                fail(CODE_IO, "", "opening /dev/null for descriptor %d: %s", fd, strerror(errno));
            exit(EXIT_FAILURE);
        }
}

static void collect_environment(void)
{
    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        size_t size = strlen(*entry) + 1;

        if (strncmp(*entry, "CNI_", 4) != 0)
            continue;
        if (size > ENVIRONMENT_CAP - call.environment_size)
            fail(CODE_ENVIRONMENT, "shorten CNI_ARGS or CNI_PATH", "the CNI_* variables are longer than %d bytes",
                 ENVIRONMENT_CAP);
        memcpy(request + REQUEST_HEADER + call.environment_size, *entry, size);
        call.environment_size += size;
    }
}

/* Reads the network configuration, up to end of file. VERSION needs none, and may be run from a terminal. */
static void read_input(void)
{
    uint8_t *input = request + REQUEST_HEADER + call.environment_size;

    while (call.stdin_size <= STDIN_CAP) {
        ssize_t got;

        if (!wait_for(STDIN_FILENO, POLLIN)) {
            if (call.command->verb == VERSION)
                return;
            fail(CODE_IO, "the runtime must close stdin after the configuration", "stdin had no end within %d s",
                 call.command->deadline_ms / 1000);
        }
        got = read(STDIN_FILENO, input + call.stdin_size, STDIN_CAP + 1 - call.stdin_size);
        if (got == 0)
            return;
        if (got > 0)
            call.stdin_size += (size_t)got;
        else if (errno != EINTR && errno != EAGAIN)
            fail(CODE_IO, "", "reading the configuration from stdin: %s", strerror(errno));
    }
    fail(CODE_CONFIGURATION, "this is no configuration of a network", "stdin has more than %d bytes", STDIN_CAP);
}

/*
 * Opens CNI_NETNS and a netlink socket inside it. Without both, the request says so and why; the agent decides what
 * that means for the verb. O_NONBLOCK: the path could be a FIFO, which would block us.
 */
static void open_doors(void)
{
    const char *path = getenv("CNI_NETNS");
    int home, problem = 0;

    if (path == NULL || *path == '\0')
        return;
    home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (home < 0)
        fail(CODE_IO, "is /proc mounted?", "opening the host's network namespace: %s", strerror(errno));
    call.doors[0] = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (call.doors[0] < 0 || setns(call.doors[0], CLONE_NEWNET) != 0) {
        problem = errno;
    } else {
        call.doors[1] = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
        problem = call.doors[1] < 0 ? errno : 0;
        /* No early exit between setns and here: staying inside would keep a dead pod's namespace alive. */
        if (setns(home, CLONE_NEWNET) != 0)
            fail(CODE_IO, "", "returning to the host's network namespace: %s", strerror(errno));
    }
    close(home);
    if (problem != 0) {
        log_line("CNI_NETNS=%s can't be entered: %s", path, strerror(problem));
        call.doors_errno = problem;
        cleanup_fd(&call.doors[0]);
    }
}

static void put_u32(uint8_t *at, size_t value)
{
    for (int byte = 0; byte < 4; byte++)
        at[byte] = (uint8_t)(value >> (8 * byte));
}

static size_t get_u32(const uint8_t *at)
{
    return at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24;
}

/* Completes the request's header; returns the request's size. */
static size_t put_header(int flags, int64_t deadline_ms)
{
    memcpy(request, "VNP", 3);
    request[3] = PROTOCOL;
    request[4] = (uint8_t)call.command->verb;
    request[5] = (uint8_t)flags;
    request[6] = EXTRA; /* 7: the higher byte */
    put_u32(request + 8, deadline_ms > 0 ? (size_t)deadline_ms : 0);
    put_u32(request + 12, call.environment_size);
    put_u32(request + 16, call.stdin_size);
#if PROTOCOL >= 2
    request[FIXED_HEADER] = (uint8_t)call.doors_errno;
    request[FIXED_HEADER + 1] = (uint8_t)(call.doors_errno >> 8);
#endif
    return REQUEST_HEADER + call.environment_size + call.stdin_size;
}

#if PROTOCOL >= 2
/* Records the call's time, by a clock that nobody sets, and its boot: wall clocks step (the agent compares). */
static void put_moment(const char *boot_id_path)
{
    uint8_t *at = request + FIXED_HEADER + 2;
    struct timespec now;
    uint64_t nanoseconds;
    int fd;

    clock_gettime(CLOCK_BOOTTIME, &now);
    nanoseconds = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    put_u32(at, (uint32_t)nanoseconds);
    put_u32(at + 4, nanoseconds >> 32);
    fd = open(boot_id_path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, at + 8, BOOT_ID) != BOOT_ID)
        memset(at + 8, 0, BOOT_ID); /* unknown */
    cleanup_fd(&fd);
}
#endif

/* Sends the whole request, the descriptors with its first byte. False with errno if the agent doesn't take it. */
static bool send_request(int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof call.doors)];
    } control;
    bool doors = call.doors[0] >= 0;
    struct iovec rest = {request, put_header(doors ? FLAG_DOORS : 0, call.deadline - now_ms())};
    struct msghdr message = {.msg_iov = &rest, .msg_iovlen = 1};

    if (doors) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof call.doors);
        memcpy(CMSG_DATA(rights), call.doors, sizeof call.doors);
    }
    while (rest.iov_len > 0) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);

        if (sent < 0) {
            if (errno == EINTR || (errno == EAGAIN && wait_for(fd, POLLOUT)))
                continue;
            return false;
        }
        message.msg_control = NULL;
        message.msg_controllen = 0;
        rest.iov_base = (uint8_t *)rest.iov_base + sent;
        rest.iov_len -= (size_t)sent;
    }
    return true;
}

static enum outcome receive_answer(int fd)
{
    size_t size = 0, wanted = ANSWER_HEADER;

    while (size < wanted) {
        ssize_t got = recv(fd, answer + size, wanted - size, 0);

        if (got < 0 && errno == EAGAIN) {
            if (!wait_for(fd, POLLIN))
                return EXPIRED;
            continue;
        }
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return LOST;
        size += (size_t)got;
        if (size == ANSWER_HEADER && wanted == ANSWER_HEADER) {
            call.answer_protocol = answer[3];
            call.exit_code = answer[4];
            call.answer_size = get_u32(answer + 8);
            if (memcmp(answer, "VNP", 3) != 0 || call.answer_protocol < 1 || call.answer_protocol > PROTOCOL ||
                call.answer_size > ANSWER_CAP)
                return GARBLED;
            wanted += call.answer_size;
        }
    }
    return ANSWERED;
}

static enum outcome converse(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    __attribute__((cleanup(cleanup_fd))) int fd = -1;

    if (strlen(call.socket_path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return UNREACHABLE;
    }
    memcpy(address.sun_path, call.socket_path, strlen(call.socket_path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return UNREACHABLE;
    while (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        /* EAGAIN: the agent's queue of callers is full (unix(7)); the kernel offers no event to wait for. */
        if (errno != EAGAIN && errno != EINTR)
            return UNREACHABLE;
        if (now_ms() >= call.deadline)
            return EXPIRED;
        poll(NULL, 0, 10);
    }
    /* An agent that refuses a request may have answered before it closed, so the answer is read in any case. */
    if (!send_request(fd) && errno == EAGAIN)
        return EXPIRED;
    return receive_answer(fd);
}

/*
 * Retries until there is an answer or no prospect of one. An ADD tolerates a restarting agent: it retries for some
 * seconds after the agent was last reachable. A retry is safe, since an ADD repeated for the same container and
 * interface returns the same result. Other verbs don't wait: a DEL is safe in the spool, the runtime retries the rest.
 */
static enum outcome ask(void)
{
    int64_t patience = now_ms() + AGENT_RETURN_MS;
    int pause_ms = 50;

    for (;;) {
        enum outcome outcome = converse();
        int problem = errno;

        if (call.command->verb != ADD || (outcome != UNREACHABLE && outcome != LOST))
            return outcome;
        if (outcome == LOST)
            patience = now_ms() + AGENT_RETURN_MS;
        if (now_ms() + pause_ms >= patience || now_ms() + pause_ms >= call.deadline) {
            errno = problem;
            return outcome;
        }
        poll(NULL, 0, pause_ms);
        if (pause_ms < 400)
            pause_ms *= 2;
    }
}

/*
 * Creates the spool's folder and its parent, which are missing if the agent has never run here. Follows no link, which
 * would let another user direct our writes as root.
 */
static int open_spool(void)
{
    char above[1024];
    char *slash;

    snprintf(above, sizeof above, "%s", call.spool_path);
    slash = strrchr(above, '/');
    if (slash != NULL) {
        *slash = '\0';
        mkdir(above, 0755);
    }
    mkdir(call.spool_path, 0700);
    return open(call.spool_path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/*
 * Keeps the spool's files small, since otherwise only their number is bounded. A DEL needs container and interface;
 * other data is useful unless it is large.
 */
static void shrink_request(void)
{
    static const char *const needed[] = {"CNI_COMMAND=", "CNI_CONTAINERID=", "CNI_IFNAME="};
    uint8_t *environment = request + REQUEST_HEADER;
    size_t size = 0;

    if (call.stdin_size > SPOOLED_PART_CAP)
        call.stdin_size = 0;
    if (call.environment_size <= SPOOLED_PART_CAP)
        return;
    for (size_t at = 0, length; at < call.environment_size; at += length) {
        length = strlen((char *)environment + at) + 1;
        for (size_t name = 0; name < sizeof needed / sizeof *needed; name++)
            if (strncmp((char *)environment + at, needed[name], strlen(needed[name])) == 0) {
                memmove(environment + size, environment + at, length);
                size += length;
                break;
            }
    }
    memmove(environment + size, environment + call.environment_size, call.stdin_size);
    call.environment_size = size;
}

/* FNV-1a of environment and stdin: equal for a repeated call. */
static uint64_t fingerprint(void)
{
    uint64_t hash = 14695981039346656037u;

    for (size_t at = 0; at < call.environment_size + call.stdin_size; at++)
        hash = (hash ^ request[REQUEST_HEADER + at]) * 1099511628211u;
    return hash;
}

struct entry { /* linux_dirent64, getdents64(2) */
    uint64_t inode;
    int64_t offset;
    uint16_t size;
    uint8_t type;
    char name[];
};

/* Counts the spool's calls, and in `same` the earlier repetitions of `name`; with `remove`, deletes the latter. */
static long look_through_spool(int folder, const char *name, bool remove, long *same)
{
    static _Alignas(struct entry) char entries[32 * 1024];
    const char *suffix = strchr(name, '-');
    long calls = 0, got;

    *same = 0;
    lseek(folder, 0, SEEK_SET);
    while ((got = syscall(SYS_getdents64, folder, entries, sizeof entries)) > 0)
        for (long at = 0; at < got;) {
            const struct entry *entry = (const void *)(entries + at);
            const char *dash = strchr(entry->name, '-');

            at += entry->size;
            if (entry->name[0] == '.' || dash == NULL || strstr(dash, ".req") == NULL)
                continue;
            calls++;
            if (strcmp(dash, suffix) == 0 && strcmp(entry->name, name) < 0) {
                ++*same;
                if (remove)
                    unlinkat(folder, entry->name, 0);
            }
        }
    return calls;
}

/*
 * Writes the request to the spool: a temporary name, synced, renamed, the folder synced. After a power cut at any point
 * there is a whole file or none. Returns NULL, or the failed step, with errno.
 */
static const char *spool_request(void)
{
    __attribute__((cleanup(cleanup_fd))) int folder = -1;
    __attribute__((cleanup(cleanup_fd))) int file = -1;
    char name[64], temporary[72];
    struct timespec now;
    long same;
    int problem;

    shrink_request();
    folder = open_spool();
    if (folder < 0)
        return "opening the folder";
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(name, sizeof name, "%lld%09ld-%llu.req", (long long)now.tv_sec, now.tv_nsec,
             (unsigned long long)fingerprint());
    if (look_through_spool(folder, name, false, &same) >= SPOOL_CAP && same == 0) {
        /*
         * Failing would keep a full node's pods undeletable and so prevent the agent's next pod. Nothing is lost: the
         * agent's first sweep releases an address whose sandbox is gone.
         */
        log_line("the agent is away and %s holds %d calls, so this DEL isn't kept: the agent will see that the sandbox is "
                 "gone", call.spool_path, SPOOL_CAP);
        exit(EXIT_SUCCESS);
    }
    snprintf(temporary, sizeof temporary, ".%lld%09ld-%ld.req.tmp", (long long)now.tv_sec, now.tv_nsec, (long)getpid());
    file = openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0)
        return "creating a file";
#if PROTOCOL >= 2
    put_moment(path_from("VNETPODS_BOOT_ID", BOOT_ID_PATH));
#endif
    if (write_all(file, request, put_header(FLAG_REPLAYED, call.command->deadline_ms)) && fsync(file) == 0 &&
        renameat(folder, temporary, folder, name) == 0) {
        if (same > 0) /* this one is later and replaces them */
            look_through_spool(folder, name, true, &same);
        return fsync(folder) == 0 ? NULL : "syncing the folder";
    }
    problem = errno;
    unlinkat(folder, temporary, 0);
    errno = problem;
    return "writing a file";
}

/* Describes the failure, for people. */
static const char *explain(enum outcome outcome, int problem)
{
    static char text[512];
    static const char agent[] = "the vnetpods agent on this node";

    if (outcome == UNREACHABLE)
        snprintf(text, sizeof text, "%s is not answering at %s: %s", agent, call.socket_path, strerror(problem));
    else if (outcome == LOST)
        snprintf(text, sizeof text, "%s closed the connection at %s without an answer", agent, call.socket_path);
    else if (outcome == EXPIRED)
        snprintf(text, sizeof text, "%s has not answered within %d s", agent, call.command->deadline_ms / 1000);
    else
        snprintf(text, sizeof text, "%s answered in protocol version %u, this plugin (%s) speaks %d", agent,
                 call.answer_protocol, SHIM_VERSION, PROTOCOL);
    return text;
}

/* Ends a call without the agent's answer. */
__attribute__((noreturn)) static void answer_alone(enum outcome outcome, int problem)
{
    static const char look[] =
        "is its pod running? kubectl -n kube-system get pods -o wide -l app.kubernetes.io/name=vnetpods";
    const char *sentence = explain(outcome, problem);
    const char *step;
    char body[256];
    int size;

    switch (call.command->verb) {
    case DEL:
        step = spool_request();
        if (step != NULL)
            fail(CODE_IO, "make room on the disk or make it writable; the DEL will then be kept for the agent",
                 "%s, and the DEL can't be kept in %s: %s: %s", sentence, call.spool_path, step, strerror(errno));
        log_line("%s; the DEL is kept in %s until it does", sentence, call.spool_path);
        exit(EXIT_SUCCESS);
    case VERSION:
        size = snprintf(
            body, sizeof body,
            "{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n",
            asked_version());
        exit(print_all((const uint8_t *)body, (size_t)size) ? EXIT_SUCCESS : EXIT_FAILURE);
    case STATUS:
        fail(CODE_NOT_AVAILABLE, look, "%s", sentence);
    case OTHER:
        fail(CODE_ENVIRONMENT, "known are ADD, DEL, CHECK, GC, STATUS and VERSION", "CNI_COMMAND=%.64s is not known",
             getenv("CNI_COMMAND"));
    default:
        fail(CODE_LATER, look, "%s", sentence);
    }
}

int main(void)
{
    const char *name = getenv("CNI_COMMAND");
    enum outcome outcome;

    signal(SIGPIPE, SIG_IGN); /* stderr's reader may already be gone */
    hold_standard_descriptors();
    if (name == NULL || *name == '\0') {
        log_line("this is a CNI plugin, version %s, protocol %d: container runtimes start it with CNI_COMMAND set, and it\n"
                 "passes the call to the agent at %s (https://www.cni.dev/docs/spec/)", SHIM_VERSION, PROTOCOL, SOCKET_PATH);
        return EXIT_SUCCESS;
    }
    for (call.command = commands; call.command->name != NULL && strcmp(call.command->name, name) != 0;)
        call.command++;
    call.deadline = now_ms() + call.command->deadline_ms;
    call.socket_path = path_from("VNETPODS_SOCKET", SOCKET_PATH); /* these variables are for tests */
    call.spool_path = path_from("VNETPODS_SPOOL", SPOOL_PATH);
    call.doors[0] = call.doors[1] = -1;
    collect_environment();
    read_input();
    if (call.command->doors)
        open_doors();
    outcome = ask();
    if (outcome != ANSWERED)
        answer_alone(outcome, errno);
    if (!print_all(answer + ANSWER_HEADER, call.answer_size)) {
        log_line("writing the answer to stdout: %s", strerror(errno));
        return EXIT_FAILURE;
    }
    return call.exit_code;
}
