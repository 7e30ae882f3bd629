//! Answers without an end: a task writes, the connection reads at its own pace, and either may stop.

use std::convert::Infallible;
use std::future::Future;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::App;

/// Pieces that wait for a client that reads slowly.
const WAITING: usize = 16;

/// Takes the pieces.
#[derive(Debug)]
pub(super) struct Sink(mpsc::Sender<Bytes>);

impl Sink {
    /// Waits for room; whether there is still somebody who reads.
    pub(super) async fn send(&self, bytes: Bytes) -> bool {
        self.0.send(bytes).await.is_ok()
    }
}

/// An answer that `write` makes, until it returns, the client goes or the daemon ends.
pub(super) fn answer<F, W>(app: &App, media_type: &'static str, write: F) -> Response
where
    F: FnOnce(Sink) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(WAITING);
    let gone = sender.clone();
    let writing = write(Sink(sender));
    let app = app.clone();
    tokio::spawn(async move {
        // In this order: what was there before the end is told before it.
        tokio::select! {
            biased;
            () = writing => {}
            () = gone.closed() => {}
            () = app.closing() => {}
        }
    });
    let pieces = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    let mut response = Response::new(Body::from_stream(pieces));
    let value = HeaderValue::from_static(media_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
