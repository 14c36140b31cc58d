//! The worker's end: answers greetings and serves the streams that they begin.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use engine::Tasks;
use futures_util::StreamExt;
use tokio::sync::Semaphore;

use super::frame::{Greeting, refusal};
use super::{Connection, Stream};
use crate::request::WorkerServer;

/// The wait before a subscription that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

impl Connection {
    /// Serves a worker's models at its subject until the future is dropped. Streams are tasks of
    /// `tasks`.
    pub async fn serve(&self, subject: &str, server: &WorkerServer, tasks: &Tasks) {
        let permits = Arc::new(Semaphore::new(self.config.max_streams));
        loop {
            match self.client.subscribe(subject.to_owned()).await {
                Ok(greetings) => self.answer(greetings, &permits, server, tasks).await,
                Err(error) => tracing::warn!(%error, "cannot subscribe to nats"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn answer(
        &self,
        mut greetings: Subscriber,
        permits: &Arc<Semaphore>,
        server: &WorkerServer,
        tasks: &Tasks,
    ) {
        while let Some(greeting) = greetings.next().await {
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                let most = self.config.max_streams;
                self.refuse(&greeting, &format!("the worker has {most} streams")).await;
                continue;
            };
            match self.accept(&greeting).await {
                Ok(stream) => {
                    let (server, calls) = (server.clone(), tasks.clone());
                    tasks.spawn("frontend connection", async move {
                        tracing::debug!("a frontend connected over nats");
                        server.serve_connection(stream, &calls).await;
                        tracing::debug!("a frontend is gone from nats");
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "a greeting over nats cannot be followed");
                    self.refuse(&greeting, &error.to_string()).await;
                }
            }
        }
    }

    async fn accept(&self, greeting: &Message) -> std::io::Result<Stream> {
        let theirs = Greeting::decode(&greeting.payload)?;
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
