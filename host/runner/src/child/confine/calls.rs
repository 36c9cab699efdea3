//! seccomp: which system calls the process may make, in all its threads, from here to its end.
//!
//! Three filters, of which the kernel takes the strictest answer. What an honest runner is known to need is allowed, with
//! its arguments checked where that means something. Anything else is refused with `EPERM`: a library that asks for a file
//! of figures goes on without. What no library of ours ever asks for, and code that was taken over does, ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Needed as they are: memory, threads, time, and reading and writing what is open.
const ALLOWED: [i64; 50] = [
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3, // another filter says that there is no such call: the library then takes `clone`
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getdents64,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mbind,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_stat, // by path: tells that a file is there and its size, never what is in it
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Never needed: other programs and processes, the network, new views of the system, the kernel itself.
const FATAL: [i64; 62] = [
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bind,
    libc::SYS_bpf,
    libc::SYS_capset,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_connect,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fork,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_listen,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_modify_ldt,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setgid,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_settimeofday,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vfork,
];

/// Allows another use of a thread's extended registers (AMX), which oneDNN asks for.
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;

/// Puts the filters on all threads. `lists_folders` for an engine that reads the list of its folder.
pub(super) fn filter(lists_folders: bool) -> Result<(), String> {
    let fatal = FATAL.iter().map(|call| (*call, Vec::new())).collect();
    apply(fatal, SeccompAction::Allow, SeccompAction::KillProcess)?;
    let absent = Rules::from([(libc::SYS_clone3, Vec::new())]);
    apply(absent, SeccompAction::Allow, errno(libc::ENOSYS))?;
    apply(allowed(lists_folders)?, errno(libc::EPERM), SeccompAction::Allow)
}

fn apply(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<(), String> {
    let filter = SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64);
    let program: BpfProgram = filter.and_then(BpfProgram::try_from).map_err(refused)?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("seccomp: {error}: {cause}"),
        None => format!("seccomp: {error}"),
    })
}

fn allowed(lists_folders: bool) -> Result<Rules, String> {
    let mut rules: Rules = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // A thread of this process, with no new view of the system.
    let views = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let thread = bits(libc::CLONE_THREAD | libc::CLONE_VM);
    rules.insert(libc::SYS_clone, vec![all([masked(0, thread | bits(views), thread)?])?]);
    // Signals to this process alone: `abort` ends in one.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![all([equal(0, own)?])?]);
    // The limits of time and of file sizes are told by signals: those can't be caught.
    rules.insert(
        libc::SYS_rt_sigaction,
        vec![all([
            unequal(0, bits(libc::SIGXCPU))?,
            unequal(0, bits(libc::SIGXFSZ))?,
        ])?],
    );
    rules.insert(libc::SYS_prctl, vec![all([equal(0, bits(libc::PR_SET_NAME))?])?]);
    rules.insert(
        libc::SYS_arch_prctl,
        vec![
            all([equal(0, ARCH_GET_XCOMP_PERM)?])?,
            all([equal(0, ARCH_REQ_XCOMP_PERM)?])?,
        ],
    );
    let commands = [
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_DUPFD_CLOEXEC,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ];
    let commands: Result<Vec<SeccompRule>, String> = commands
        .into_iter()
        .map(|command| all([equal(1, bits(command))?]))
        .collect();
    rules.insert(libc::SYS_fcntl, commands?);
    // Memory is private, or that of a file, whose size is limited: shared memory without a file is not.
    rules.insert(
        libc::SYS_mmap,
        vec![
            all([masked(3, bits(libc::MAP_SHARED), 0)?])?,
            all([masked(3, bits(libc::MAP_ANONYMOUS), 0)?])?,
        ],
    );
    if lists_folders {
        // Folders can be opened for their list, as far as Landlock lets them; files can't.
        let flags =
            libc::O_DIRECTORY | libc::O_ACCMODE | libc::O_CREAT | libc::O_PATH | (libc::O_TMPFILE & !libc::O_DIRECTORY);
        rules.insert(
            libc::SYS_openat,
            vec![all([masked(2, bits(flags), bits(libc::O_DIRECTORY))?])?],
        );
    }
    Ok(rules)
}

fn errno(value: i32) -> SeccompAction {
    SeccompAction::Errno(value.unsigned_abs())
}

/// A flag or number of the C library as the filter has it.
fn bits(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

fn all<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, String> {
    SeccompRule::new(conditions.into()).map_err(refused)
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).map_err(refused)
}

fn unequal(argument: u8, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value).map_err(refused)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value).map_err(refused)
}

fn refused(error: seccompiler::BackendError) -> String {
    format!("the filter of system calls: {error}")
}
