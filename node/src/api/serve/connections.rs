//! Connections: taken while there is room for them, ended in order.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::super::App;
use super::super::work::Work;

/// Connections at once; more wait in the kernel's queue.
const MOST: usize = 4096;

/// How long a request's head may take to come.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// Pause after an accept that failed: out of descriptors, most often, of which some will be free soon.
const PAUSE: Duration = Duration::from_millis(50);

/// Where connections come from.
pub(super) trait Accept: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// What all of them share.
#[derive(Clone)]
pub(super) struct Connections {
    app: App,
    work: Work,
    room: Arc<Semaphore>,
}

impl Connections {
    pub(super) fn new(app: App, work: Work) -> Self {
        Self {
            app,
            work,
            room: Arc::new(Semaphore::new(MOST)),
        }
    }

    /// Takes connections until the daemon begins to end.
    pub(super) async fn accept(self, listener: impl Accept, router: Router) {
        tokio::select! {
            () = self.take(&listener, &router) => {}
            () = self.app.closing() => {}
        }
    }

    async fn take(&self, listener: &impl Accept, router: &Router) {
        // It is never closed.
        while let Ok(room) = Arc::clone(&self.room).acquire_owned().await {
            match listener.next().await {
                Ok(stream) => {
                    let served = serve(self.app.clone(), stream, router.clone());
                    let left = self.work.begin();
                    tokio::spawn(async move {
                        served.await;
                        drop((room, left));
                    });
                }
                Err(error) => {
                    log::warn!("a connection cannot be taken: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// One connection. Once the daemon begins to end, the request that is under way is its last.
async fn serve<S>(app: App, stream: S, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = app.closing() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = &mut connection => result,
                () = app.over() => Ok(()),
            }
        }
    };
    if let Err(error) = result {
        log::debug!("a connection broke: {error}");
    }
}
