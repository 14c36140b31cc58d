//! The worker's end: answers greetings and serves the streams that they begin.
//!
//! Whoever may publish to the worker's subject can send anything there, as fast as it likes. So what
//! is no greeting is let fall without an answer, and greetings are answered by tasks of which there
//! is a number: nothing makes what comes pile up.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use engine::{Flood, Tasks};
use futures_util::StreamExt;

use super::frame::{Greeting, refusal};
use super::{Connection, Stream};
use crate::request::{Seat, Seats, WorkerServer};

/// The wait before a subscription that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a stream has no calls before it gives its place to another one.
const IDLE: Duration = Duration::from_secs(60);

/// A worker's subject, where frontends' greetings come.
#[derive(Debug)]
pub struct Listener {
    connection: Connection,
    subject: String,
    /// What has come since it listens; none after an error.
    greetings: Option<Subscriber>,
}

impl Listener {
    /// Serves a worker's models until the future is dropped. Streams are tasks of `tasks`.
    pub async fn serve(mut self, server: &WorkerServer, tasks: &Tasks) {
        let seats = Seats::new("nats", self.connection.config.max_streams, IDLE);
        loop {
            if let Some(greetings) = self.greetings.take() {
                self.connection.answer(greetings, &seats, server, tasks).await;
            }
            tokio::time::sleep(AGAIN).await;
            self.greetings = self.connection.greetings(&self.subject).await;
        }
    }
}

impl Connection {
    /// Listens at a worker's subject. NATS knows of it when this returns, unless it cannot be
    /// reached within a moment: who hears of the worker later is not told that nobody listens.
    pub async fn listen(&self, subject: impl Into<String>) -> Listener {
        let subject = subject.into();
        let greetings = self.greetings(&subject).await;
        if !self.settle().await {
            tracing::info!("nats is not there yet: this worker may be called over grpc");
        }
        Listener { connection: self.clone(), subject, greetings }
    }

    async fn greetings(&self, subject: &str) -> Option<Subscriber> {
        let subscribed = self.client.subscribe(subject.to_owned()).await;
        let failed = |error: &_| tracing::warn!(%error, "cannot subscribe to nats");
        subscribed.inspect_err(failed).ok()
    }

    async fn answer(
        &self,
        mut greetings: Subscriber,
        seats: &Arc<Seats>,
        server: &WorkerServer,
        tasks: &Tasks,
    ) {
        let mut strays = Flood::default();
        while let Some(greeting) = greetings.next().await {
            let theirs = match Greeting::decode(&greeting.payload) {
                Ok(theirs) => theirs,
                Err(error) => {
                    if let Some(untold) = strays.admit() {
                        tracing::warn!(%error, untold, "what came over nats is no greeting");
                    }
                    continue;
                }
            };
            let Some(seat) = seats.try_take() else {
                let most = self.config.max_streams;
                self.refuse(&greeting, &format!("the worker has {most} streams")).await;
                continue;
            };
            let (connection, server, calls) = (self.clone(), server.clone(), tasks.clone());
            tasks.spawn("frontend connection", async move {
                connection.take_in((greeting, theirs), &server, &seat, &calls).await;
            });
        }
    }

    /// Answers a greeting and serves the stream that it begins.
    async fn take_in(
        &self,
        (greeting, theirs): (Message, Greeting),
        server: &WorkerServer,
        seat: &Seat,
        tasks: &Tasks,
    ) {
        match self.accept(&greeting, theirs).await {
            Ok(stream) => {
                tracing::debug!("a frontend connected over nats");
                server.serve_connection(stream, seat, tasks).await;
                tracing::debug!("a frontend is gone from nats");
            }
            Err(error) => {
                tracing::debug!(%error, "a greeting over nats cannot be followed");
                self.refuse(&greeting, &error.to_string()).await;
            }
        }
    }

    async fn accept(&self, greeting: &Message, theirs: Greeting) -> std::io::Result<Stream> {
        let Some(reply) = greeting.reply.clone() else {
            return Err(std::io::Error::other("it wants no answer"));
        };
        let losses = self.losses();
        let inbox = self.client.new_inbox();
        let subscribed = self.client.subscribe(inbox.clone()).await;
        let incoming = subscribed.map_err(std::io::Error::other)?;
        let ours = Greeting { inbox: inbox.clone(), window: self.config.window_bytes };
        let published = self.client.publish(reply, ours.encode()).await;
        published.map_err(std::io::Error::other)?;
        Ok(Stream::new(self, (inbox, incoming), theirs, losses))
    }

    async fn refuse(&self, greeting: &Message, why: &str) {
        if let Some(reply) = greeting.reply.clone()
            && let Err(error) = self.client.publish(reply, refusal(why)).await
        {
            tracing::debug!(%error, "cannot refuse over nats");
        }
    }
}
