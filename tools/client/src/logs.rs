//! Log lines, as they come.

use std::io::{BufRead, BufReader, ErrorKind};

use ureq::{BodyReader, SendBody};

use crate::{error::ClientError, node::Node, path, types::LogLine};

/// Which lines.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogQuery<'a> {
    /// Only of this application.
    pub app: Option<&'a str>,
    /// Only of this process.
    pub process: Option<&'a str>,
    /// Stay, and give lines as they are written.
    pub follow: bool,
    /// At most so many of the lines that are there already.
    pub tail: Option<u64>,
}

/// The lines of one query. Ends when the node ends, or at the last line if it does not follow.
pub struct LogLines {
    address: String,
    body: BufReader<BodyReader<'static>>,
    line: String,
    over: bool,
}

impl std::fmt::Debug for LogLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogLines").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Node {
    /// Reads log lines.
    pub fn logs(&self, query: &LogQuery<'_>) -> Result<LogLines, ClientError> {
        let request = self.request_with_query("GET", &["v1", "logs"], &query_text(query));
        let response = self.send(request, SendBody::none())?;
        let body = BufReader::new(response.into_body().into_reader());
        Ok(LogLines { address: self.address().to_owned(), body, line: String::new(), over: false })
    }
}

fn query_text(query: &LogQuery<'_>) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: &str| {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        path::encode_into(&mut text, value);
    };
    if let Some(app) = query.app {
        add("app", app);
    }
    if let Some(process) = query.process {
        add("process", process);
    }
    if query.follow {
        add("follow", "1");
    }
    if let Some(tail) = query.tail {
        add("tail", &tail.to_string());
    }
    text
}

impl Iterator for LogLines {
    type Item = Result<LogLine, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        self.line.clear();
        match self.body.read_line(&mut self.line) {
            Ok(0) => None,
            Ok(_) => Some(self.parse()),
            Err(error) => {
                self.over = true;
                self.ending(error)
            }
        }
    }
}

impl LogLines {
    fn parse(&self) -> Result<LogLine, ClientError> {
        serde_json::from_str(&self.line).map_err(|error| ClientError::Nonsense {
            address: self.address.clone(),
            what: format!("a log line that is not one: {error}"),
        })
    }

    /// A node that ends while somebody follows its logs breaks the answer off; that is the ordinary end of following.
    fn ending(&self, error: std::io::Error) -> Option<Result<LogLine, ClientError>> {
        if is_hang_up(&error) {
            return None;
        }
        Some(Err(ClientError::BrokeOff {
            address: self.address.clone(),
            doing: "reading logs",
            source: error,
        }))
    }
}

fn is_hang_up(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
    )
}

#[cfg(test)]
mod tests {
    use super::{LogQuery, query_text};

    #[test]
    fn a_query_is_encoded() {
        let query = LogQuery { app: Some("a&b"), process: Some("p"), follow: true, tail: Some(3) };
        assert_eq!(query_text(&query), "?app=a%26b&process=p&follow=1&tail=3");
        assert_eq!(query_text(&LogQuery::default()), "");
    }
}
