use super::*;
use rundlet_protocol::Entropy;

/// Writes down what it is asked for; fails at one step.
#[derive(Debug, Default)]
struct Recorder {
    steps: Vec<String>,
    broken: &'static str,
}

impl Recorder {
    fn note(&mut self, step: &'static str, value: &str) -> io::Result<()> {
        self.steps.push(format!("{step} {value}"));
        if step == self.broken {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(())
    }
}

impl Identity for Recorder {
    fn settle(&mut self) -> io::Result<()> {
        self.note("settle", "")
    }
    fn entropy(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.note("entropy", &bytes.len().to_string())
    }
    fn realtime(&mut self, since_epoch: Duration) -> io::Result<()> {
        self.note("realtime_ns", &since_epoch.as_secs().to_string())
    }
    fn hostname(&mut self, name: &str) -> io::Result<()> {
        self.note("hostname", name)
    }
    fn machine_id(&mut self, id: &str) -> io::Result<()> {
        self.note("machine_id", id)
    }
    fn boot_id(&mut self, id: &str) -> io::Result<()> {
        self.note("boot_id", id)
    }
}

fn renewal() -> Renewal {
    Renewal {
        entropy: Entropy(vec![7; 64]),
        realtime_ns: 1_700_000_000_000_000_000,
        hostname: "box".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        boot_id: "01234567-89ab-4def-8123-456789abcdef".into(),
    }
}

const STEPS: [&str; 5] = [
    "entropy 64",
    "realtime_ns 1700000000",
    "hostname box",
    "machine_id 0123456789abcdef0123456789abcdef",
    "boot_id 01234567-89ab-4def-8123-456789abcdef",
];

#[test]
fn entropy_comes_first_and_every_field_is_set() {
    let mut recorder = Recorder::default();
    renew(&renewal(), &mut recorder, &mut Cgroups::open(None)).unwrap();
    assert_eq!(recorder.steps, STEPS);
}

#[test]
fn a_failed_step_is_named_and_the_last_one() {
    for (index, step) in STEPS.iter().enumerate() {
        let broken = step.split(' ').next().unwrap();
        let mut recorder = Recorder {
            broken,
            ..Recorder::default()
        };
        let result = renew(&renewal(), &mut recorder, &mut Cgroups::open(None));
        let failure = result.unwrap_err();
        assert!(
            failure.message.starts_with(&format!("{broken}: ")),
            "{failure:?}"
        );
        assert_eq!(recorder.steps, STEPS[..=index]);
    }
}

#[test]
fn a_wrong_field_changes_nothing() {
    let wrong = Renewal {
        boot_id: "x".into(),
        ..renewal()
    };
    let mut recorder = Recorder::default();
    let result = renew(&wrong, &mut recorder, &mut Cgroups::open(None));
    let failure = result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Invalid);
    assert!(failure.message.starts_with("boot_id: "), "{failure:?}");
    assert!(recorder.steps.is_empty());
}

#[test]
fn what_cannot_be_frozen_is_not_settled() {
    let mut recorder = Recorder::default();
    let failure = prepare(&mut recorder, &mut Cgroups::open(None)).unwrap_err();
    assert_eq!(failure.kind, FailureKind::State);
    assert!(failure.message.contains("cgroup v2"), "{failure:?}");
    assert!(recorder.steps.is_empty());
}
