//! HTTP-01: the answers that show a CA that a name leads here (RFC 8555 §8.3).
//!
//! In: tokens with their key authorizations, for as long as an order runs; requests. Out: answers; to everything
//! else 404. A key authorization is no secret: it shows that the account is ours, and nobody else can use it.
//! Not here: the listener and its limits (`admin::probes`).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};

use crate::admin::probes;

const PREFIX: &str = "/.well-known/acme-challenge/";

/// What is answered now.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<HashMap<String, String>>);

impl Tokens {
    pub fn publish(&self, token: &str, key_authorization: &str) {
        self.lock().insert(token.to_owned(), key_authorization.to_owned());
    }

    pub fn withdraw(&self, token: &str) {
        self.lock().remove(token);
    }

    pub fn withdraw_all(&self) {
        self.lock().clear();
    }

    pub fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        self.to(request.method(), request.uri().path())
    }

    fn to(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let known = path.strip_prefix(PREFIX).and_then(|token| self.lock().get(token).cloned());
        match known {
            Some(text) if method == Method::GET || method == Method::HEAD => {
                probes::text(StatusCode::OK, text)
            }
            Some(_) => probes::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"),
            None => probes::text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_running_challenges_are_answered() {
        let answers = Tokens::default();
        let status = |method: Method, path: &str| answers.to(&method, path).status().as_u16();
        assert_eq!(status(Method::GET, "/.well-known/acme-challenge/t"), 404);
        answers.publish("t", "t.key");
        assert_eq!(status(Method::GET, "/.well-known/acme-challenge/t"), 200);
        assert_eq!(status(Method::POST, "/.well-known/acme-challenge/t"), 405);
        for path in ["/", "/t", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/../t"]
        {
            assert_eq!(status(Method::GET, path), 404, "{path}");
        }
        answers.withdraw("t");
        assert_eq!(status(Method::GET, "/.well-known/acme-challenge/t"), 404);
    }
}
