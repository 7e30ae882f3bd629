//! `vhost-blk-ro`: parse, serve, say what went wrong, exit.

use std::process::ExitCode;

use vhost_blk_ro::{cli, daemon};

fn main() -> ExitCode {
    // The crates below speak of guest mistakes at error level; the session's own line says it all.
    let filter = env_logger::Env::default().default_filter_or("info,virtio_queue=off");
    env_logger::Builder::from_env(filter).init();
    rundlet_jail::panic::without_backtrace();
    let run = || {
        let cli::Command::Serve(serve) = argh::from_env::<cli::Cli>().command;
        daemon::run(&serve.load()?, serve.lifeline)
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-blk-ro: {error:#}");
            // 2 is for what the caller wrote, 1 for what the host did.
            ExitCode::from(if error.is::<vhost_blk_ro::config::Error>() {
                2
            } else {
                1
            })
        }
    }
}
