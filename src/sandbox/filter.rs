//! The system calls that a program is denied.

use std::collections::BTreeMap;

use rustix::process::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

use crate::error::{Error, Result};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Denied whatever their arguments are. The groups: network (a socket of any kind, since a local one reaches services
/// that act for the user; rings, which make sockets without the call), other processes, name spaces and mounts, the
/// kernel itself, memory and queues that no limit counts or that outlive the program, and attributes of files, which
/// Landlock leaves alone.
#[rustfmt::skip]
const DENIED: &[i64] = &[
    libc::SYS_socket, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd, libc::SYS_pidfd_send_signal, libc::SYS_kcmp, libc::SYS_tkill, libc::SYS_setpriority,
    libc::SYS_ioprio_set, libc::SYS_sched_setaffinity, libc::SYS_sched_setscheduler, libc::SYS_sched_setparam,
    libc::SYS_sched_setattr, libc::SYS_migrate_pages, libc::SYS_move_pages,
    libc::SYS_unshare, libc::SYS_setns, libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot,
    libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick, libc::SYS_move_mount,
    libc::SYS_open_tree, libc::SYS_mount_setattr, libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at,
    libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_keyctl, libc::SYS_add_key,
    libc::SYS_request_key, libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module,
    libc::SYS_kexec_load, libc::SYS_reboot, libc::SYS_syslog, libc::SYS_acct, libc::SYS_swapon, libc::SYS_swapoff,
    libc::SYS_quotactl, libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_adjtimex, libc::SYS_clock_adjtime,
    libc::SYS_sethostname, libc::SYS_setdomainname, libc::SYS_personality, libc::SYS_vhangup,
    libc::SYS_fanotify_init,
    libc::SYS_shmget, libc::SYS_semget, libc::SYS_msgget, libc::SYS_mq_open, libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_fchmod, libc::SYS_fchmodat, FCHMODAT2, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_utimensat,
    libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr, libc::SYS_removexattr, libc::SYS_lremovexattr,
    libc::SYS_fremovexattr, SETXATTRAT, REMOVEXATTRAT, FILE_SETATTR,
];

/// Older forms, which newer architectures never had.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const DENIED_OLD: &[i64] = &[
    libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_utime, libc::SYS_utimes, libc::SYS_futimesat,
    libc::SYS_kexec_file_load, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_OLD: &[i64] = &[];

// Newer than the constants of the C library's binding; the numbers are those of all architectures.
const FCHMODAT2: i64 = 452;
const SETXATTRAT: i64 = 463;
const REMOVEXATTRAT: i64 = 466;
const FILE_SETATTR: i64 = 469;

/// Every name space that `clone` can make.
const NEW_NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Denies the calls to this process and all that come from it, for ever. The denied call fails with `EPERM`; `clone3`,
/// whose arguments no filter can read, with `ENOSYS`, upon which C libraries turn to `clone`.
///
/// # Errors
/// A kernel without seccomp filters, an architecture that is not known.
pub fn apply() -> Result<()> {
    let lacking = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::environment("the kernel cannot deny a program the network (seccomp filters)")
            .hint("use a kernel with CONFIG_SECCOMP_FILTER on x86-64, ARM64 or RISC-V")
            .because(error)
    };
    let programs = denied().and_then(|rules| Ok([compile(rules, libc::EPERM)?, compile(absent(), libc::ENOSYS)?]));
    for program in &programs.map_err(lacking)? {
        apply_filter(program).map_err(|error| lacking(error.into()))?;
    }
    Ok(())
}

type Fallible<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn compile(rules: Rules, errno: i32) -> Fallible<BpfProgram> {
    let rules = with_second_numbers(rules);
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

fn absent() -> Rules {
    Rules::from([(libc::SYS_clone3, Vec::new())])
}

fn denied() -> Fallible<Rules> {
    let mut rules: Rules = DENIED.iter().chain(DENIED_OLD).map(|number| (*number, Vec::new())).collect();
    // Connected pairs reach nobody else.
    rules.insert(libc::SYS_socketpair, vec![rule(&[(0, SeccompCmpOp::Ne, libc::AF_UNIX)])?]);
    // A process may signal itself: `abort` does.
    let own = getpid().as_raw_nonzero().get();
    for call in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo] {
        rules.insert(call, vec![rule(&[(0, SeccompCmpOp::Ne, own)])?]);
    }
    // Limits of other processes; 0 is the caller.
    rules.insert(libc::SYS_prlimit64, vec![rule(&[(0, SeccompCmpOp::Ne, 0), (0, SeccompCmpOp::Ne, own)])?]);
    let spaces = NEW_NAMESPACES.iter().map(|flag| {
        let mask = u64::from(flag.unsigned_abs());
        rule(&[(0, SeccompCmpOp::MaskedEq(mask), *flag)])
    });
    rules.insert(libc::SYS_clone, spaces.collect::<Fallible<_>>()?);
    Ok(rules)
}

/// Denies a call when every condition on its arguments (place, comparison, 32-bit value) holds.
fn rule(conditions: &[(u8, SeccompCmpOp, i32)]) -> Fallible<SeccompRule> {
    let conditions = conditions.iter().map(|(argument, compare, value)| {
        let value = u64::from(value.cast_unsigned());
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, compare.clone(), value)
    });
    Ok(SeccompRule::new(conditions.collect::<std::result::Result<_, _>>()?)?)
}

/// On x86-64 every call has a second number for programs with 32-bit pointers (x32), where a kernel has these.
fn with_second_numbers(rules: Rules) -> Rules {
    const X32: i64 = 0x4000_0000;
    if !cfg!(target_arch = "x86_64") {
        return rules;
    }
    rules.into_iter().flat_map(|(number, rules)| [(number, rules.clone()), (number | X32, rules)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_name_no_call_twice() {
        for rules in [denied().unwrap(), absent()] {
            assert!(!compile(rules, libc::EPERM).unwrap().is_empty());
        }
        let all: std::collections::BTreeSet<_> = DENIED.iter().chain(DENIED_OLD).collect();
        assert_eq!(all.len(), DENIED.len() + DENIED_OLD.len());
    }
}
