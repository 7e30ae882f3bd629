//! The node's API: HTTP/1.1 and JSON on a unix socket.
//!
//! ```text
//! serve      the socket, its connections, and the end of the daemon
//! node       what is asked of a node: a trait, so that tests have a double
//! hosted     the node that a daemon has
//! extract    requests, checked; what is wrong is named
//! problem    answers to what goes wrong (RFC 9457)
//! sandboxes, exec, images, templates, events, logs, figures    the handlers
//! relay      a command's streams between a client and an agent
//! document   the OpenAPI document, made of the handlers
//! ```
//!
//! What must hold: a handler never blocks the threads that serve. Lists are answered from memory; what is short goes
//! to the blocking pool; what may take long goes there under a limit, so that there is always room for what is short.
//! A client may go away at any point: what it has begun is finished or undone, never left half made.

mod document;
pub mod events;
pub mod exec;
mod extract;
pub mod figures;
mod hosted;
pub mod images;
mod logs;
pub mod node;
pub mod problem;
mod relay;
pub mod sandboxes;
pub mod serve;
mod stream;
pub mod templates;
#[cfg(test)]
mod tests;
mod work;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use tokio::sync::{Semaphore, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::metrics::Metrics;
use node::{HostError, Node};
use problem::Problem;
use work::Work;

pub use document::document;

/// Calls that may take long and are under way at once; more wait. Half of the runtime's blocking threads (512), and
/// starts have a limit of their own.
const LONG_CALLS: usize = 256;

/// How far the daemon is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Age {
    Serving,
    /// Nothing new is begun, and what has no end of its own ends.
    Closing,
    /// What is under way ends, too.
    Over,
}

/// What every handler has.
#[derive(Clone)]
pub(crate) struct App {
    node: Arc<dyn Node>,
    metrics: Metrics,
    long: Arc<Semaphore>,
    age: watch::Receiver<Age>,
    /// What the daemon waits for before it ends.
    work: Work,
}

impl App {
    fn new(node: Arc<dyn Node>, metrics: Metrics, age: watch::Receiver<Age>, work: Work) -> Self {
        Self {
            node,
            metrics,
            long: Arc::new(Semaphore::new(LONG_CALLS)),
            age,
            work,
        }
    }

    /// Calls the node where blocking does no harm.
    async fn short<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Node) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, Problem> {
        Ok(self.call(call).await??)
    }

    /// The same for what may take long. Goes on when the client has gone.
    async fn long<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Node) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let permit = Arc::clone(&self.long).acquire_owned().await;
        // It is never closed.
        let permit = permit.map_err(|_| Problem::from(HostError::Closing))?;
        let left = self.work.begin();
        self.call(move |node| {
            let result = call(node);
            drop((permit, left));
            result
        })
        .await
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Node) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let node = Arc::clone(&self.node);
        tokio::task::spawn_blocking(move || call(&*node))
            .await
            .map_err(|error| Problem::internal(format!("a call of the node broke off: {error}")))
    }

    /// Once the daemon begins to end.
    async fn closing(&self) {
        self.reached(Age::Closing).await;
    }

    /// Once the daemon does not wait any longer.
    async fn over(&self) {
        self.reached(Age::Over).await;
    }

    async fn reached(&self, age: Age) {
        // Fails when whoever decides it has gone, which is late enough.
        let _ = self.age.clone().wait_for(|it| *it >= age).await;
    }
}

/// All routes, with what the document says of them.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sandboxes::create, sandboxes::list))
        .routes(routes!(sandboxes::inspect, sandboxes::remove))
        .routes(routes!(exec::exec))
        .routes(routes!(exec::stream))
        .routes(routes!(sandboxes::stop))
        .routes(routes!(sandboxes::kill))
        .routes(routes!(sandboxes::wait))
        .routes(routes!(logs::logs))
        .routes(routes!(events::events))
        .routes(routes!(images::list, images::import))
        .routes(routes!(images::remove))
        .routes(routes!(templates::list, templates::build))
        .routes(routes!(templates::inspect, templates::remove))
        .routes(routes!(figures::health))
        .routes(routes!(figures::metrics))
        .routes(routes!(document::serve))
}

/// The service behind the socket.
fn router(app: App) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(app.clone(), measure))
        .with_state(app)
}

async fn no_route(request: Request) -> Problem {
    let detail = format!("there is no {}", request.uri().path());
    Problem::new("no-route", detail)
}

async fn no_method(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    Problem::new("no-method", format!("{path} has no {method}"))
}

/// Counts and times every request. What has no route is one route.
async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let response = next.run(request).await;
    let code = response.status().as_u16();
    app.metrics.request(&method, path, code, begin.elapsed());
    response
}
