//! The frontend's end: connects to a worker by NATS, and where that fails by another way.

use std::io;

use async_nats::client::RequestErrorKind;
use async_nats::{Request, Subject};
use async_trait::async_trait;
use tokio::time::timeout;

use super::frame::Greeting;
use super::{Connection, Stream};
use crate::request::{Connector, Io};

/// Connects to a worker by NATS.
#[derive(Clone, Debug)]
pub struct Nats {
    connection: Connection,
    subject: Subject,
    address: String,
}

impl Nats {
    /// Makes the connector to the worker that listens at `subject`; `address` is its `HOST:PORT`
    /// for messages.
    pub fn new(
        connection: &Connection,
        subject: impl Into<String>,
        address: impl Into<String>,
    ) -> Self {
        let subject = subject.into().into();
        Self { connection: connection.clone(), subject, address: address.into() }
    }

    async fn greet(&self) -> io::Result<Stream> {
        let Connection { client, config, .. } = &self.connection;
        if !self.connection.is_connected() {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "nats cannot be reached"));
        }
        let losses = self.connection.losses();
        let inbox = client.new_inbox();
        let incoming = client.subscribe(inbox.clone()).await.map_err(io::Error::other)?;
        let greeting = Greeting { inbox: inbox.clone(), window: config.window_bytes };
        let request =
            Request::new().payload(greeting.encode()).timeout(Some(config.greeting_timeout));
        let answer = client.send_request(self.subject.clone(), request).await;
        let answer = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => {
                io::Error::new(io::ErrorKind::ConnectionRefused, "no responders at nats")
            }
            RequestErrorKind::TimedOut => {
                io::Error::new(io::ErrorKind::TimedOut, "no answer over nats")
            }
            _ => io::Error::other(error),
        })?;
        let theirs = Greeting::decode(&answer.payload)?;
        Ok(Stream::new(&self.connection, (inbox, incoming), theirs, losses))
    }
}

#[async_trait]
impl Connector for Nats {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        // Subscribing waits too, where the connection hangs and nobody knows it yet.
        let greeted = timeout(self.connection.config.greeting_timeout, self.greet()).await;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer over nats");
        let greeted = greeted.map_err(late).flatten();
        if greeted.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            // It may be the worker that does not answer.
            self.connection.breaker.doubt();
        }
        Ok(Box::new(greeted?))
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn is_left(&self) -> bool {
        self.connection.breaker.is_left()
    }

    async fn settle(&self) {
        self.connection.breaker.settle().await;
    }
}

/// Connects by the first way, and by the second when the first fails. A first way that is left is
/// tried last.
#[derive(Clone, Debug)]
pub struct WithFallback<A, B> {
    /// What is tried first.
    pub first: A,
    /// What is tried then; its address is the worker's.
    pub second: B,
}

#[async_trait]
impl<A: Connector, B: Connector> Connector for WithFallback<A, B> {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let ways: [&dyn Connector; 2] = match self.first.is_left() {
            false => [&self.first, &self.second],
            true => [&self.second, &self.first],
        };
        match ways[0].connect().await {
            Ok(io) => Ok(io),
            Err(first) => {
                let address = self.second.address();
                tracing::debug!(address, error = %first, "the other way is taken to a worker");
                ways[1].connect().await.map_err(|second| {
                    io::Error::new(second.kind(), format!("{second}; before that: {first}"))
                })
            }
        }
    }

    fn address(&self) -> &str {
        self.second.address()
    }

    async fn settle(&self) {
        self.first.settle().await;
    }
}
