//! The API as a daemon serves it, over a double of the node: `served --socket PATH --directory DIR [--metrics ADDRESS]`.
//! There is no guest: commands run on this machine, under the real agent (`RUNDLET_DOUBLE_AGENT`, a rundlet-init).
//! For tests only, and for clients that want to be tried.

mod node;
mod outputs;
mod sandbox;
mod state;

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use rundlet_node::api::serve::{Listener, serve};
use rundlet_node::host::config::SocketConfig;
use rundlet_node::metrics::Metrics;

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let socket = SocketConfig {
        path: path("--socket").ok_or("no --socket")?,
        mode: 0o600,
        group: None,
    };
    let metrics_at = argument("--metrics").map(|it| it.parse()).transpose()?;
    let listener = Listener::open(&socket)?;
    let metrics = Metrics::new();
    let directory = path("--directory").ok_or("no --directory")?;
    let node = Arc::new(node::Double::open(&directory, metrics.clone())?);
    serve(listener, node, &metrics, metrics_at)?;
    Ok(())
}

fn argument(name: &str) -> Option<String> {
    let mut args = env::args().skip_while(|arg| arg != name);
    args.nth(1)
}

fn path(name: &str) -> Option<PathBuf> {
    argument(name).map(PathBuf::from)
}
