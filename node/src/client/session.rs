//! A command in a sandbox of the daemon, to its end: streams, signals and terminal as if it ran here.

use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rundlet_protocol::ExecSpec;

use super::{Client, ClientError};
use crate::agent::{Command, CommandEvent, Connection, Streams};
use crate::host::model::{CreateSandbox, Phase, Source};
use crate::run::session::BROKEN_PIPE;
use crate::run::signals::{self, Interrupts, SIGWINCH};
use crate::run::{self, Cause, OUR_ERROR, RunError, TIMED_OUT, stdio, terminal};

/// How long the daemon may take to find out why a sandbox has gone.
const HINDSIGHT: Duration = Duration::from_secs(2);

/// How often it is asked meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Why there is no exit code of the command.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("sandbox {id} has ended: {reason}")]
    Ended { id: String, reason: String },
}

impl From<Cause> for SessionError {
    fn from(cause: Cause) -> Self {
        Self::Run(cause.into())
    }
}

impl SessionError {
    /// The exit code for the shell.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Run(error) => error.code(),
            Self::Client(_) | Self::Ended { .. } => OUR_ERROR,
        }
    }
}

/// A command to run, and how.
#[derive(Debug)]
pub struct Wish {
    pub spec: ExecSpec,
    pub tty: bool,
    pub interactive: bool,
    /// From its start.
    pub timeout: Option<Duration>,
}

enum News {
    Command(CommandEvent),
    Signal(i32),
}

/// Runs a command in a sandbox that is there: the exit code.
///
/// # Errors
/// It cannot be run, or its end was not heard of.
pub fn exec(client: &Client, id: &str, wish: Wish) -> Result<u8, SessionError> {
    let (sender, news) = mpsc::channel();
    let signals = sender.clone();
    signals::listen(move |signal| signals.send(News::Signal(signal)).is_ok())
        .map_err(Cause::Signals)?;
    let tell = move |event| drop(sender.send(News::Command(event)));
    let stream = client.open_command(id)?;
    match session(stream, wish, tell, &news) {
        Err(Cause::Agent(error)) => {
            Err(hindsight(client, id).unwrap_or_else(|| SessionError::from(Cause::Agent(error))))
        }
        other => Ok(other?),
    }
}

/// Makes a sandbox for one command, and runs it.
///
/// # Errors
/// As [`exec`]; the sandbox is removed in any case.
pub fn run(client: &Client, request: run::Request) -> Result<u8, SessionError> {
    let detail = client.create(&sandbox(&request), None)?;
    let id = detail.summary.id;
    let wish = Wish {
        spec: ExecSpec {
            argv: request.argv,
            env: request.env,
            cwd: request.workdir,
            user: request.user,
            ..ExecSpec::default()
        },
        tty: request.tty,
        interactive: request.interactive,
        timeout: request.timeout,
    };
    let result = exec(client, &id, wish);
    if matches!(result, Err(SessionError::Client(_)))
        // There was no command whose end would have removed it.
        && let Err(error) = client.remove(&id, true)
    {
        log::debug!("sandbox {id}: {error}");
    }
    result
}

fn sandbox(request: &run::Request) -> CreateSandbox {
    let mut wish = CreateSandbox {
        source: Source::Image(String::new()),
        memory_mib: None,
        vcpus: None,
        scratch_mib: None,
        env: Default::default(),
        labels: Default::default(),
        timeout_s: None,
        limits: Default::default(),
        auto_remove: true,
    };
    match &request.source {
        run::Source::Template(name) => wish.source = Source::Template(name.to_string()),
        run::Source::Image(machine) => {
            wish.source = Source::Image(machine.image.to_string());
            wish.memory_mib = Some(machine.memory_mib);
            wish.vcpus = Some(machine.vcpus);
            wish.scratch_mib = Some(machine.scratch_mib);
        }
    }
    wish
}

fn session(
    stream: std::os::unix::net::UnixStream,
    mut wish: Wish,
    tell: impl Fn(CommandEvent) + Send + Sync + 'static,
    news: &Receiver<News>,
) -> Result<u8, Cause> {
    let connection = Connection::greet(stream)?;
    wish.spec.tty = wish.tty.then(terminal::size);
    wish.spec.stdin = wish.interactive;
    let _raw = (wish.tty && wish.interactive).then(terminal::Raw::enter);
    let streams = Streams {
        stdin: wish
            .interactive
            .then(stdio::stdin)
            .transpose()
            .map_err(Cause::Stdio)?,
        stdout: stdio::stdout().map_err(Cause::Stdio)?,
        stderr: stdio::stderr().map_err(Cause::Stdio)?,
    };
    let command = connection.exec(wish.spec, streams, tell)?;
    supervise(&command, news, wish.tty, wish.timeout)
}

fn supervise(
    command: &Command,
    news: &Receiver<News>,
    tty: bool,
    timeout: Option<Duration>,
) -> Result<u8, Cause> {
    let mut deadline = None;
    let mut interrupts = Interrupts::default();
    loop {
        match next(news, deadline) {
            None => return Ok(TIMED_OUT),
            Some(News::Command(CommandEvent::Started(_))) => {
                deadline = timeout.map(|limit| Instant::now() + limit);
            }
            Some(News::Command(event)) => {
                if let Some(code) = command_event(event)? {
                    return Ok(code);
                }
            }
            Some(News::Signal(SIGWINCH)) => {
                if tty {
                    command.resize(terminal::size())?;
                }
            }
            Some(News::Signal(signal)) => {
                if interrupts.is_last(signal) {
                    return Ok(signals::code(signal));
                }
                command.signal(signal)?;
            }
        }
    }
}

/// `None` at the deadline.
fn next(news: &Receiver<News>, deadline: Option<Instant>) -> Option<News> {
    let Some(deadline) = deadline else {
        // The threads that send live as long as this one listens.
        return news.recv().ok();
    };
    let left = deadline.saturating_duration_since(Instant::now());
    news.recv_timeout(left).ok()
}

/// The exit code, at the end.
fn command_event(event: CommandEvent) -> Result<Option<u8>, Cause> {
    match event {
        CommandEvent::Started(_) | CommandEvent::FirstOutput => Ok(None),
        CommandEvent::OutputClosed(_, error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Ok(Some(BROKEN_PIPE))
        }
        CommandEvent::OutputClosed(stream, source) => Err(Cause::Output { stream, source }),
        CommandEvent::Exited(status) => {
            let code = u8::try_from(status.shell_code());
            code.map(Some).map_err(|_| Cause::Status(status))
        }
        CommandEvent::Failed(failure) => Err(Cause::Command(failure)),
        CommandEvent::Lost(error) => Err(Cause::Agent(error)),
    }
}

/// Why a connection broke, if the daemon knows: the sandbox has ended.
fn hindsight(client: &Client, id: &str) -> Option<SessionError> {
    let deadline = Instant::now() + HINDSIGHT;
    while Instant::now() < deadline {
        let summary = client.inspect(id).ok()?.summary;
        if matches!(summary.phase, Phase::Stopped | Phase::Failed) {
            let reason = summary.reason;
            return Some(SessionError::Ended {
                id: summary.id,
                reason: reason.unwrap_or_else(|| "it was stopped".into()),
            });
        }
        std::thread::sleep(PAUSE);
    }
    None
}
