//! What a program that a model wrote can do in the sandbox, and what it cannot. The programs are real.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use ortbench::sandbox::{Limits, Run, Sandbox, Verdict};

fn sandbox() -> Sandbox {
    Sandbox { program: env!("CARGO_BIN_EXE_ortbench").into(), arguments: vec!["sandbox".into()] }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

fn limits() -> Limits {
    Limits { wall_seconds: 30.0, cpu_seconds: 20, memory_bytes: 512 << 20, file_bytes: 1 << 20, processes: 16 }
}

fn python(source: &str, limits: &Limits) -> Run {
    sandbox().run(&words(&["python3", "main.py"]), "main.py", source, limits).expect("a sandbox")
}

fn shell(source: &str, limits: &Limits) -> Run {
    sandbox().run(&words(&["sh", "main.sh"]), "main.sh", source, limits).expect("a sandbox")
}

fn passes(run: &Run) -> &str {
    assert_eq!(run.verdict, Verdict::Passed, "{}", run.output);
    &run.output
}

/// A process whose command line holds the text.
fn runs(text: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok()).any(|line| {
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(text) && !line.contains("ortbench")
    })
}

#[test]
fn a_program_passes_or_fails_by_its_own_end() {
    let run = python("import sys\nprint('out')\nprint('err', file=sys.stderr)\nassert 1 + 1 == 2\n", &limits());
    assert!(passes(&run).contains("out\n") && run.output.contains("err\n"));
    assert!(run.seconds > 0.0 && run.seconds < 30.0);
    let run = python("assert 1 + 1 == 3, 'wrong sum'\n", &limits());
    assert_eq!(run.verdict, Verdict::Failed { code: 1 });
    assert!(run.output.contains("AssertionError: wrong sum"), "{}", run.output);
    assert_eq!(shell("exit 77", &limits()).verdict, Verdict::Failed { code: 77 });
    assert_eq!(shell("kill -TERM $$", &limits()).verdict, Verdict::Killed { signal: 15 });
    assert_eq!(python("import os; os.abort()", &limits()).verdict, Verdict::Killed { signal: 6 });
}

#[test]
fn its_surroundings_are_few_and_its_own() {
    let run = shell("pwd; ls; cat; echo \"$HOME $TMPDIR\"; env | cut -d= -f1 | sort | tr '\\n' ' '", &limits());
    let lines: Vec<_> = passes(&run).lines().collect();
    assert_eq!(&lines[1..], ["main.sh", &format!("{0} {0}", lines[0]), "HOME LANG PATH PWD TMPDIR "]);
    assert!(!Path::new(lines[0]).exists(), "the folder stays");
    // One that this process would hand down to all that it starts.
    let _leak = rustix::io::dup(fs::File::open("/dev/null").unwrap()).unwrap();
    let run = python("import sys, os\nprint(sys.stdin.read() == '', os.listdir('/proc/self/fd'))\n", &limits());
    // The three standard ones and that of the listing.
    assert_eq!(passes(&run), "True ['0', '1', '2', '3']\n");
}

#[test]
fn endless_programs_end_by_either_clock() {
    let wall = Limits { wall_seconds: 1.0, ..limits() };
    assert_eq!(shell("sleep 1000", &wall).verdict, Verdict::TimedOut);
    let processor = Limits { cpu_seconds: 1, ..limits() };
    let run = python("while True: pass", &processor);
    assert_eq!(run.verdict, Verdict::TimedOut);
    assert!(run.seconds < 30.0);
    // The second limit cannot be ignored.
    let run = python("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", &processor);
    assert_eq!(run.verdict, Verdict::Killed { signal: 9 });
}

#[test]
fn memory_files_and_output_have_ends() {
    let run = python("try:\n  x = bytearray(1 << 30)\nexcept MemoryError:\n  print('none left')\n", &limits());
    assert_eq!(passes(&run), "none left\n");
    let run = shell("cat /dev/zero > endless", &limits());
    assert_ne!(run.verdict, Verdict::Passed);
    let run = python(
        "import os\ntry:\n  f = open('endless', 'wb', 0)\n  while True: f.write(bytes(65536))\nexcept OSError as e:\n  \
         print(e.errno, os.path.getsize('endless'))\n",
        &limits(),
    );
    assert_eq!(passes(&run), "27 1048576\n");
    let run = python("import sys\nfor i in range(100):\n  sys.stdout.write('x' * 1000000)\nprint('end')", &limits());
    assert!(passes(&run).starts_with("xxx") && run.output.ends_with("end\n"));
    assert!(run.output.contains("[99934468 bytes left out]"), "{}", run.output.len());
    let run = python("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')", &limits());
    assert_eq!(passes(&run), "\u{fffd}\u{fffd}");
}

#[test]
fn there_is_no_network_even_where_somebody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let source = format!(
        "import socket\nfor make in (\n  lambda: socket.create_connection(('127.0.0.1', {port})),\n  \
         lambda: socket.socket(socket.AF_INET6), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),\n  \
         lambda: socket.socket(socket.AF_UNIX), lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)):\n  \
         try:\n    make()\n    print('open')\n  except OSError as e:\n    print(e.errno)\n\
         a, b = socket.socketpair()\na.send(b'pair')\nprint(b.recv(9))\n"
    );
    // A port that nobody forbids is reached, so that the refusal below is the sandbox's.
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert!(listener.accept().is_ok());
    assert_eq!(passes(&python(&source, &limits())), "1\n1\n1\n1\n1\nb'pair'\n");
    assert!(listener.accept().is_err(), "somebody came in");
}

#[test]
fn calls_that_go_around_the_filter_are_denied_too() {
    // io_uring_setup, socket by its number for 32-bit pointers, unshare of the network, ptrace of the parent.
    let source = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n\
                  calls = [(425, 1, 0), (0x40000029, 2, 1, 0), (272, 0x40000000), (101, 16, os.getppid(), 0, 0)]\n\
                  for call in calls:\n  print(libc.syscall(*call), ctypes.get_errno())\n";
    if cfg!(target_arch = "x86_64") {
        assert_eq!(passes(&python(source, &limits())), "-1 1\n".repeat(4));
    }
}

#[test]
fn nothing_outside_its_folder_is_written() {
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("kept");
    fs::write(&file, "kept").unwrap();
    // Also the ordinary user `nobody` may write here, but for the sandbox.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let there = outside.path().display();
    let source = format!(
        "import os\nprint(open('{there}/kept').read())\nopen('own', 'w').write('x')\nos.rename('own', 'renamed')\n\
         os.mkdir('folder')\nopen('/dev/null', 'w').write('x')\nfor act in (\n  lambda: open('{there}/kept', 'w'),\n  \
         lambda: open('{there}/new', 'w'), lambda: os.truncate('{there}/kept', 0), lambda: os.mkdir('{there}/d'),\n  \
         lambda: os.open('{there}/kept', os.O_RDONLY | os.O_TRUNC), lambda: os.remove('{there}/kept'),\n  \
         lambda: os.rename('renamed', '{there}/new'), lambda: os.rename('{there}/kept', 'kept'),\n  \
         lambda: os.symlink('a', '{there}/l'), lambda: os.chmod('{there}/kept', 0),\n  \
         lambda: os.utime('{there}/kept', (0, 0)), lambda: os.link('renamed', '{there}/hard')):\n  \
         try:\n    act()\n    print('done')\n  except OSError as e:\n    print(e.errno in (1, 13, 18))\n"
    );
    assert_eq!(passes(&python(&source, &limits())), format!("kept\n{}", "True\n".repeat(12)));
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(passes(&shell("echo x >/dev/null 2>&1; ln -s /etc/shadow here; echo linked", &limits())), "linked\n");
}

#[test]
fn children_do_not_outlive_the_program() {
    // A child that detaches itself twice, holds the output open, and is of another session.
    let source = "import os, sys, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    \
                  os.execvp('sleep', ['sleep', '987651'])\n  os._exit(0)\ntime.sleep(0.5)\nprint('done')\n";
    let begin = Instant::now();
    assert_eq!(passes(&python(source, &limits())), "done\n");
    assert!(begin.elapsed() < Duration::from_secs(30), "it waited for the child");
    assert!(!runs("sleep 987651"), "the child lives");
    let run = shell("sleep 987652 & sleep 987652 & wait", &Limits { wall_seconds: 1.0, ..limits() });
    assert_eq!(run.verdict, Verdict::TimedOut);
    assert!(!runs("sleep 987652"), "the children live");
}

#[test]
fn processes_have_a_number() {
    let source = "import os, time\nn = 0\ntry:\n  while n < 1000:\n    if os.fork() == 0:\n      time.sleep(60)\n      \
                  os._exit(0)\n    n += 1\nexcept OSError as e:\n  print(e.errno, n < 40)\n";
    assert_eq!(passes(&python(source, &limits())), "11 True\n");
    // A fork bomb ends with the wall clock at the latest.
    let bomb = "f() { f & f & wait; }; f";
    let run = shell(bomb, &Limits { wall_seconds: 2.0, ..limits() });
    assert!(run.output.contains("fork"), "{}", run.output);
    assert!(!runs("main.sh"), "the bomb lives");
}

#[test]
fn it_cannot_signal_its_watcher() {
    let source = "import os, signal\nfor pid in (os.getppid(), 0, -1, 1):\n  try:\n    \
                  os.kill(pid, signal.SIGKILL)\n    print('sent')\n  except OSError as e:\n    print(e.errno)\n";
    assert_eq!(passes(&python(source, &limits())), "1\n".repeat(4));
}

#[test]
fn the_program_dies_with_who_asked_for_it() {
    // The hidden command, as `Sandbox::run` starts it, with a parent that is killed.
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("started");
    let limits = serde_json::to_string(&limits()).unwrap();
    let script = format!(
        "touch '{}'; '{}' sandbox --limits '{limits}' -- sh -c 'sleep 987653 & sleep 987653'",
        mark.display(),
        env!("CARGO_BIN_EXE_ortbench")
    );
    let inner = tempfile::tempdir().unwrap();
    let mut parent = std::process::Command::new("sh");
    parent.arg("-c").arg(format!("{script}; true")).current_dir(inner.path());
    parent.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut parent = parent.spawn().unwrap();
    let wait_until = |what: bool| {
        let begin = Instant::now();
        while runs("sleep 987653") != what {
            assert!(begin.elapsed() < Duration::from_secs(60), "waited for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_until(true);
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until(false);
}

#[test]
fn its_folder_is_removed_whatever_it_holds() {
    let source = "import os\nprint(os.getcwd())\nos.makedirs('closed/in')\nos.mkdir('shut', 0)\n\
                  os.mkdir('deep')\nos.chdir('deep')\nfor i in range(1100):\n  os.mkdir('d')\n  os.chdir('d')\n";
    let run = python(source, &limits());
    assert!(!Path::new(passes(&run).trim()).exists());
}

#[test]
fn what_is_missing_is_said_before_anything_runs() {
    sandbox().check(&words(&["python3", "main.py"])).expect("this machine can");
    let error = sandbox().check(&words(&["no-such-interpreter"])).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.chain().contains("finds no `no-such-interpreter`"), "{}", error.chain());
    assert!(error.find_hint().is_some_and(|hint| hint.contains("/usr/bin")));
    let error = sandbox().run(&words(&["no-such-interpreter"]), "a", "", &limits()).unwrap_err();
    assert!(error.chain().contains("finds no `no-such-interpreter`"), "{}", error.chain());
    let error = sandbox().run(&words(&["./text"]), "text", "no program", &limits()).unwrap_err();
    assert!(error.chain().contains("cannot execute `./text`"), "{}", error.chain());
}

/// What `check` says on a kernel where that call does not exist. Filters hold for a thread and what it starts.
fn check_without(call: i64) -> (u8, String, String) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let checked = std::thread::spawn(move || {
        let absent = SeccompAction::Errno(38);
        let rules = [(call, Vec::new())].into();
        let architecture = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, absent, architecture).unwrap();
        apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        sandbox().check(&words(&["python3"]))
    });
    let error = checked.join().unwrap().unwrap_err();
    (error.exit_code(), error.chain(), error.find_hint().unwrap_or_default().to_owned())
}

#[test]
fn a_kernel_that_cannot_confine_runs_nothing() {
    let (code, error, hint) = check_without(libc::SYS_seccomp);
    assert_eq!(code, 3);
    assert!(error.contains("cannot run generated programs safely") && error.contains("the network"), "{error}");
    assert!(hint.contains("CONFIG_SECCOMP_FILTER"), "{hint}");
    let (code, error, hint) = check_without(libc::SYS_landlock_create_ruleset);
    assert_eq!(code, 3);
    assert!(error.contains("to its folder"), "{error}");
    assert!(hint.contains("Linux 6.2"), "{hint}");
}
