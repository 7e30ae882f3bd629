//! The socket, its connections, and the end of the daemon.
//!
//! The listener is made before the node is opened: who connects meanwhile waits, and two daemons never open one node.
//! An end that was asked for is orderly: nothing new is taken on, streams end, what is under way has [`PATIENCE`].
//! Sandboxes are none of its business, they stay.

mod connections;
mod listener;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::node::Node;
use super::work::{Watcher, Work};
use super::{Age, App, figures, router};
use crate::metrics::Metrics;
use crate::notify;
use connections::Connections;

pub use listener::Listener;

/// How long what is under way may take once the daemon was told to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long is waited for calls that do not end.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{}: another daemon answers there; stop it, or name another socket.path", .0.display())]
    Living(PathBuf),
    #[error("{} is there and is no socket; name another socket.path", .0.display())]
    Other(PathBuf),
    #[error("socket.path: cannot {action} {}", path.display())]
    Socket {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("socket.group: there is no group {0} in /etc/group; its number can be given as well")]
    Group(String),
    #[error(
        "LISTEN_FDS: {0} passed on; one listening unix socket is taken, and one TCP socket for metrics"
    )]
    Activation(&'static str),
    #[error("metrics.listen: cannot listen on {address}")]
    Metrics {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot start the threads that serve")]
    Runtime(#[source] io::Error),
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
}

/// Serves until SIGTERM or SIGINT. `metrics_at` is where figures are served besides, over TCP, if no socket for that came
/// from systemd.
///
/// # Errors
/// It cannot begin.
pub fn serve(
    listener: Listener,
    node: Arc<dyn Node>,
    metrics: &Metrics,
    metrics_at: Option<SocketAddr>,
) -> Result<(), ServeError> {
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_name("api")
        .build()
        .map_err(ServeError::Runtime)?;
    let (age, aging) = watch::channel(Age::Serving);
    let told = age.clone();
    listen_to_signals(move || {
        told.send_replace(Age::Closing);
    })?;
    let result = run(&runtime, listener, node, metrics, metrics_at, (age, aging));
    // A call that hangs is left behind: the node recovers from that, as from a kill.
    runtime.shutdown_timeout(LAST_CALLS);
    result
}

fn run(
    runtime: &Runtime,
    mut listener: Listener,
    node: Arc<dyn Node>,
    metrics: &Metrics,
    metrics_at: Option<SocketAddr>,
    (age, aging): (watch::Sender<Age>, watch::Receiver<Age>),
) -> Result<(), ServeError> {
    let (work, mut watcher) = Work::new();
    let app = App::new(node, metrics.clone(), aging, work.clone());
    runtime.block_on(async {
        let connections = Connections::new(app.clone(), work);
        let passed = listener.take_metrics();
        let (socket, place) = listener.into_tokio()?;
        let main = tokio::spawn(connections.clone().accept(socket, router(app.clone())));
        if let Some(metrics) = metrics_socket(passed, metrics_at).await? {
            let route = Router::new().route("/metrics", get(figures::metrics));
            tokio::spawn(
                connections
                    .clone()
                    .accept(metrics, route.with_state(app.clone())),
            );
        }
        drop(connections);
        tell(notify::READY);
        app.closing().await;
        drop(app);
        tell(notify::STOPPING);
        log::info!("the daemon ends; sandboxes stay");
        drop(main.await);
        finish(&mut watcher, &age).await;
        drop(place);
        Ok(())
    })
}

/// The one that systemd has made, or ours if one is wanted.
async fn metrics_socket(
    passed: Option<std::net::TcpListener>,
    wanted: Option<SocketAddr>,
) -> Result<Option<tokio::net::TcpListener>, ServeError> {
    if let Some(passed) = passed {
        let socket = passed
            .set_nonblocking(true)
            .and_then(|()| tokio::net::TcpListener::from_std(passed));
        return socket.map(Some).map_err(ServeError::Runtime);
    }
    let Some(address) = wanted else {
        return Ok(None);
    };
    let socket = tokio::net::TcpListener::bind(address).await;
    let socket = socket.map_err(|source| ServeError::Metrics { address, source })?;
    Ok(Some(socket))
}

/// Waits for what is under way, and does not wait longer.
async fn finish(watcher: &mut Watcher, age: &watch::Sender<Age>) {
    if watcher.all(PATIENCE).await {
        return;
    }
    log::warn!(
        "not all requests were done after {} seconds",
        PATIENCE.as_secs()
    );
    age.send_replace(Age::Over);
    watcher.all(LAST_CALLS).await;
}

fn tell(words: &str) {
    if let Err(error) = notify::notify(words) {
        log::warn!("systemd cannot be told {words}: {error}");
    }
}

fn listen_to_signals(told: impl Fn() + Send + 'static) -> Result<(), ServeError> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(ServeError::Signals)?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in &mut signals {
                told();
            }
        })
        .map_err(ServeError::Signals)?;
    Ok(())
}
