//! Takes from a helper process that reads foreign bytes what it never needs of the kernel: a filter
//! of system calls (seccomp(2)).
//!
//! The filter is a list of what is refused, not of what is allowed. The C library and the runtimes
//! change the calls that they make from version to version, and a helper that fails over a harmless
//! new one would be worse than what an exact list adds: what is refused here is what turns control
//! of a process into control of its host.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// Refused with any arguments.
const REFUSED: &[libc::c_long] = &[
    // Running programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_kill,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // Programs in the kernel, and rings that perform calls past this filter.
    libc::SYS_bpf,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // Namespaces and mounts.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // The kernel itself.
    libc::SYS_acct,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_personality,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    // Clocks and names of the host.
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    // The kernel's key rings.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    // Other users.
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setuid,
    // Devices.
    libc::SYS_mknodat,
];

/// What only this architecture has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS_fork,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// The kinds of sockets that helpers have.
const SOCKETS: [libc::c_int; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Refuses, from now on and for good, to this thread and to all that it starts: programs, other
/// processes, namespaces, mounts, modules, eBPF, key rings, clocks, other users, and all sockets
/// but those of IP and of the local machine. What is refused fails with `EPERM`.
pub fn confine() -> io::Result<()> {
    let program = program().map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().chain(REFUSED_HERE).map(|call| (*call, Vec::new())).collect();
    let is_not = |family: &libc::c_int| {
        let family = u64::try_from(*family).unwrap_or_default();
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    let others: Vec<_> = SOCKETS.iter().map(is_not).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(others)?]);
    // On x86-64 the kernel may take each call under a second number, for programs with short
    // pointers (X32). Of those, no helper makes any.
    #[cfg(target_arch = "x86_64")]
    {
        const X32: i64 = 0x4000_0000;
        // Those with numbers of their own, execve among them.
        const OWN: std::ops::RangeInclusive<i64> = 512..=547;
        let second: Vec<i64> = rules.keys().copied().chain(OWN).map(|call| call | X32).collect();
        rules.extend(second.into_iter().map(|call| (call, Vec::new())));
    }
    let errno = u32::try_from(libc::EPERM).unwrap_or(1);
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), architecture)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::thread;

    use nix::errno::Errno;
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    /// The filter is a thread's, and does not outlive it.
    fn confined<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::spawn(|| {
            confine().unwrap();
            test()
        });
        thread.join().unwrap()
    }

    fn seccomp_mode() -> String {
        let mut status = String::new();
        std::fs::File::open("/proc/thread-self/status").unwrap().read_to_string(&mut status).unwrap();
        status.lines().find(|line| line.starts_with("Seccomp:")).unwrap().to_owned()
    }

    #[test]
    fn a_confined_thread_and_those_that_it_starts_are_under_the_filter() {
        let modes = confined(|| [seccomp_mode(), thread::spawn(seccomp_mode).join().unwrap()]);
        assert_eq!(modes, ["Seccomp:\t2", "Seccomp:\t2"]);
    }

    #[test]
    fn a_confined_thread_runs_no_program_and_enters_no_namespace() {
        let (run, left) = confined(|| (Command::new("true").status(), unshare(CloneFlags::CLONE_NEWUSER)));
        assert_eq!(run.unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(left, Err(Errno::EPERM));
    }

    #[test]
    fn a_confined_thread_has_sockets_of_ip_and_of_the_local_machine_only() {
        let open = |family, kind| socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map(drop);
        confined(move || {
            UdpSocket::bind("127.0.0.1:0").unwrap();
            UdpSocket::bind("[::1]:0").unwrap();
            UnixStream::pair().unwrap();
            assert_eq!(open(AddressFamily::Packet, SockType::Raw), Err(Errno::EPERM));
            assert_eq!(open(AddressFamily::Netlink, SockType::Raw), Err(Errno::EPERM));
            assert_eq!(open(AddressFamily::Alg, SockType::SeqPacket), Err(Errno::EPERM));
        });
    }
}
