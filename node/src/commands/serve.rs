//! `rundlet serve`.

use std::error::Error;
use std::sync::Arc;

use rundlet_node::api::node::Node;
use rundlet_node::api::serve::{self, Listener};
use rundlet_node::error::chain;
use rundlet_node::host::Host;
use rundlet_node::host::config::Config;
use rundlet_node::metrics::Metrics;

use super::FAILED;
use crate::cli;

pub(crate) fn serve(args: &cli::Serve) -> u8 {
    let result = || -> Result<(), Box<dyn Error>> {
        let config = Config::load(args.config.as_deref())?;
        if args.check {
            println!("the configuration is good");
            return Ok(());
        }
        super::log(&config.log);
        // First the socket: who has it, has the node.
        let listener = Listener::open(&config.socket)?;
        let metrics = Metrics::new();
        let node = node(&config, &metrics)?;
        serve::serve(listener, node, &metrics, config.metrics.listen)?;
        Ok(())
    };
    match result() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rundlet: {}", chain(&*error));
            FAILED
        }
    }
}

fn node(config: &Config, metrics: &Metrics) -> Result<Arc<dyn Node>, Box<dyn Error>> {
    let host = Host::open(config)?;
    let metrics = metrics.clone();
    host.observe(Arc::new(move |step, source, took| {
        metrics.start(step, source, took);
    }));
    Ok(Arc::new(host))
}
