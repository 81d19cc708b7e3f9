//! What a task prints, as CloudWatch Logs has it.

use std::{
    io::{self, Write},
    time::Duration,
};

use aws_sdk_cloudwatchlogs::{
    Client,
    config::{self, retry::RetryConfig},
    error::ProvideErrorMetadata,
};
use forebay_datasets::aws;
use tokio::time::Instant;

use super::answers;
use crate::fleet::engine::{Class, EngineError};

/// What a task has printed may come so long after its end.
const LATE: Duration = Duration::from_secs(15);
/// Between two looks for what is late.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row that find nothing are taken for the log's end.
const SILENT: u32 = 2;

/// One stream, from its head.
pub(super) struct Log {
    client: Client,
    group: String,
    stream: String,
    /// Where its unread part begins.
    next: Option<String>,
    is_begun: bool,
}

impl Log {
    /// Finds endpoint and credentials as the AWS SDK does, and asks nobody yet.
    pub(super) async fn open(
        region: &str,
        retries: RetryConfig,
        group: &str,
        stream: String,
    ) -> Result<Self, EngineError> {
        let shared = aws::config(Some(region)).await;
        let shared = shared.map_err(|error| EngineError::new(Class::Permanent, error.to_string()))?;
        let config = config::Builder::from(&shared).retry_config(retries).build();
        Ok(Self { client: Client::from_conf(config), group: group.to_owned(), stream, next: None, is_begun: false })
    }

    /// Prints what is new, and tells whether there was anything.
    pub(super) async fn print(&mut self) -> Result<bool, EngineError> {
        let mut is_new = false;
        loop {
            let ask = self.client.get_log_events().log_group_name(&self.group).log_stream_name(&self.stream);
            let page = match ask.start_from_head(true).set_next_token(self.next.clone()).send().await {
                Ok(page) => page,
                // A stream is made when something is printed.
                Err(error) if error.code() == Some("ResourceNotFoundException") => return Ok(is_new),
                Err(error) => {
                    let EngineError { class, why } = answers::error(&error);
                    return Err(EngineError::new(class, format!("cannot read the log in {}: {why}", self.group)));
                }
            };
            let lines: String =
                page.events().iter().flat_map(|event| [event.message().unwrap_or_default(), "\n"]).collect();
            let mut stdout = io::stdout();
            let written = stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush());
            written.map_err(|error| EngineError::new(Class::Permanent, format!("cannot print: {error}")))?;
            is_new |= !lines.is_empty();
            self.is_begun |= is_new;
            // At the end of what there is it is told what it was asked with.
            if page.next_forward_token == self.next {
                return Ok(is_new);
            }
            self.next = page.next_forward_token;
        }
    }

    /// Prints what is left of a log whose task has ended.
    pub(super) async fn rest(&mut self) -> Result<(), EngineError> {
        let (begun, mut silent) = (Instant::now(), 0);
        loop {
            silent = if self.print().await? { 0 } else { silent + 1 };
            // Whatever a command does, it says something.
            if begun.elapsed() >= LATE || (self.is_begun && silent >= SILENT) {
                return Ok(());
            }
            // Nobody tells that a log is whole.
            tokio::time::sleep(LOOK).await;
        }
    }
}
