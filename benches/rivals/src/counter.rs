//! What a user would write instead of a counting function: a hyper service that calls `INCR` of a Redis, all requests over one
//! pipelined connection, as the client library recommends.

use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;

/// Serves until it is killed. `redis` is `HOST:PORT`.
pub(crate) fn serve(redis: &str) {
    crate::http::serve_with(async || {
        let client = redis::Client::open(format!("redis://{redis}/")).expect("an address");
        let connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
        move |_request| {
            let mut connection = connection.clone();
            async move {
                let mut increment = redis::cmd("INCR");
                increment.arg("counter");
                let count: u64 = increment.query_async(&mut connection).await.expect("a count");
                Ok(Response::new(Full::new(Bytes::from(count.to_string()))))
            }
        }
    });
}
