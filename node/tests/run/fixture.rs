//! A store with one image, a runtime directory and the doubles, all in one temporary directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The longest that anything here may take.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const RUNDLET: &str = env!("CARGO_BIN_EXE_rundlet");

/// Programs that cargo does not promise to have built for this test.
struct Built {
    double: PathBuf,
    agent: PathBuf,
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let status = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--package",
                "rundlet",
                "--example",
                "double",
            ])
            .status()
            .unwrap();
        assert!(status.success(), "building the double failed");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "rundlet-init"])
            .status()
            .unwrap();
        assert!(status.success(), "building rundlet-init failed");
        let directory = Path::new(RUNDLET).parent().unwrap();
        Built {
            double: directory.join("examples/double"),
            agent: directory.join("rundlet-init"),
        }
    })
}

pub(crate) struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    /// With the image `img`.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for name in ["libexec", "guest", "tree", "run"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        for name in ["rundlet-vmm", "vhost-blk-ro"] {
            symlink(&built().double, path.join("libexec").join(name)).unwrap();
        }
        for name in ["vmlinux", "initrd.cpio"] {
            fs::write(path.join("guest").join(name), name).unwrap();
        }
        fs::write(path.join("tree/file"), "in the image").unwrap();
        let fixture = Self { directory };
        let output = fixture.rundlet(&["image", "import", &fixture.text("tree"), "img"]);
        assert!(output.status.success(), "{output:?}");
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `rundlet` with this fixture's places.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(RUNDLET);
        command
            .args(args)
            .env("RUNDLET_STORE", self.path("store"))
            .env("RUNDLET_RUNTIME", self.path("run"))
            .env("RUNDLET_LIBEXEC", self.path("libexec"))
            .env("RUNDLET_GUEST", self.path("guest"))
            .env("RUNDLET_DOUBLE_AGENT", &built().agent)
            .env_remove("RUNDLET_DOUBLE")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn rundlet(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// `rundlet run [options] img -- sh -c script`, to its end.
    pub(crate) fn sh(&self, options: &[&str], script: &str) -> Output {
        self.rundlet(&sh(options, script))
    }

    /// The same with something going wrong.
    pub(crate) fn troubled(&self, trouble: &str, options: &[&str], script: &str) -> Output {
        let args = sh(options, script);
        let mut command = self.command(&args);
        command.env("RUNDLET_DOUBLE", trouble).output().unwrap()
    }

    /// The one run directory there is, once a command in it has been started.
    pub(crate) fn run_directory(&self) -> PathBuf {
        let mut found = None;
        eventually("a run directory", || {
            found = fs::read_dir(self.path("run/runs"))
                .ok()
                .and_then(|mut runs| runs.next());
            found.is_some()
        });
        found.unwrap().unwrap().path()
    }

    /// Neither a file in the runtime directory nor a process that knows it is left.
    pub(crate) fn is_clean(&self) -> bool {
        fs::read_dir(self.path("run/runs"))
            .unwrap()
            .next()
            .is_none()
            && self.processes().is_empty()
    }

    /// Processes that were started with this fixture's environment: our children and theirs.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let mark = format!("RUNDLET_RUNTIME={}\0", self.text("run"));
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let path = entry.path();
            let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse().ok()) else {
                continue;
            };
            // Gone, a zombie, or somebody else's: not ours then.
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            if String::from_utf8_lossy(&environment).contains(&mark) {
                let command = fs::read(path.join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
            }
        }
        found
    }
}

/// A killed double leaves its agent behind, which a real machine would take with it.
impl Drop for Fixture {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
            // It may have ended by itself just now.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

pub(crate) fn sh<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    let mut args = vec!["run"];
    args.extend_from_slice(options);
    args.extend(["img", "--", "sh", "-c", script]);
    args
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The exit code, which has to come soon.
pub(crate) fn code(child: &mut Child) -> Option<i32> {
    let mut status = None;
    eventually("the end of rundlet", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
