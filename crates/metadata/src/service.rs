//! The service itself: the document, the tokens and the rules by which guests get to them, behind one lock.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kindling_metrics::Metrics;
use serde_json::Value;

use crate::http::{Method, Request, Response, Status};
use crate::store::{Format, ReadError, Store};
use crate::token::{KEY_BYTES, Tokens};
use crate::{Error, MetadataMetrics};

/// Where guests get tokens.
const TOKEN_PATH: &str = "latest/api/token";

/// The rules by which guests read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// Anybody reads. Tokens can be had, and are not needed.
    #[default]
    V1,
    /// A read needs a token.
    V2,
}

/// A metadata service. The host changes its document, guests read it through [`Endpoint`](crate::Endpoint)s.
pub struct Service {
    inner: Mutex<Inner>,
    /// Where the time of tokens begins.
    start: Instant,
    metrics: Arc<MetadataMetrics>,
}

struct Inner {
    store: Store,
    tokens: Tokens,
    version: Version,
    imds_compat: bool,
}

impl Service {
    /// A service without a document yet, which can have `limit` bytes as JSON, and version 1.
    ///
    /// # Errors
    ///
    /// [`Error::Random`].
    pub fn new(limit: usize) -> Result<Arc<Self>, Error> {
        let tokens = Tokens::new(random::<KEY_BYTES>()?);
        let inner =
            Inner { store: Store::new(limit), tokens, version: Version::default(), imds_compat: false };
        Ok(Arc::new(Self { inner: Mutex::new(inner), start: Instant::now(), metrics: Arc::default() }))
    }

    /// Chooses the rules by which guests read. With `imds_compat`, they get text whatever they say they accept.
    pub fn configure(&self, version: Version, imds_compat: bool) {
        let mut inner = self.lock();
        inner.version = version;
        inner.imds_compat = imds_compat;
    }

    /// Replaces the document.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] and [`Error::TooDeep`]. The document is then as before.
    pub fn put(&self, document: Value) -> Result<(), Error> {
        self.lock().store.put(document)
    }

    /// Changes the document as a JSON merge patch says (RFC 7396).
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] before anything was put, [`Error::TooLarge`] and [`Error::TooDeep`]. The document is then as before.
    pub fn patch(&self, patch: Value) -> Result<(), Error> {
        self.lock().store.patch(patch)
    }

    /// The document; an empty object before anything was put.
    pub fn get(&self) -> Value {
        self.lock().store.document().cloned().unwrap_or_else(|| Value::Object(Default::default()))
    }

    /// Bytes that the document can have as JSON.
    pub fn limit(&self) -> usize {
        self.lock().store.limit()
    }

    /// What the service and its endpoints count.
    pub fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::clone(&self.metrics) as Arc<dyn Metrics>
    }

    pub(crate) fn counters(&self) -> &MetadataMetrics {
        &self.metrics
    }

    /// What a guest's request is answered at the time `now`.
    pub(crate) fn respond(&self, now: Instant, request: &Request<'_>) -> Response {
        match request.method {
            Method::Get | Method::Put if request.has_body => {
                Response::error(Status::BadRequest, "a request here has no body")
            }
            Method::Get => self.read(now, request),
            Method::Put => self.issue_token(now, request),
            Method::Other => {
                let why = "only GET and PUT are allowed";
                Response { allow: true, ..Response::error(Status::MethodNotAllowed, why) }
            }
        }
    }

    fn read(&self, now: Instant, request: &Request<'_>) -> Response {
        let inner = self.lock();
        let age = now.saturating_duration_since(self.start);
        let refusal = match request.token {
            None => {
                self.metrics.tokens_missing.increment();
                Some("a token is needed, in a header X-metadata-token or X-aws-ec2-metadata-token")
            }
            Some(token) if !inner.tokens.is_valid(age, token) => {
                self.metrics.tokens_invalid.increment();
                Some("the token is not valid, or not any more")
            }
            Some(_) => None,
        };
        if let Some(why) = refusal.filter(|_| inner.version == Version::V2) {
            return Response::error(Status::Unauthorized, why);
        }
        let format = if request.accepts_json && !inner.imds_compat { Format::Json } else { Format::Text };
        match inner.store.read(request.path, format) {
            Ok(body) => Response { is_json: format == Format::Json, ..Response::text(body) },
            Err(ReadError::NotFound) => {
                Response::error(Status::NotFound, &format!("there is nothing at {}", request.path))
            }
            Err(ReadError::NoText) => {
                Response::error(Status::NotImplemented, "only strings and objects can be read as text")
            }
        }
    }

    fn issue_token(&self, now: Instant, request: &Request<'_>) -> Response {
        if request.is_forwarded {
            return Response::error(Status::BadRequest, "no token for a request with X-Forwarded-For");
        }
        if !request.path.split('/').filter(|part| !part.is_empty()).eq(TOKEN_PATH.split('/')) {
            return Response::error(Status::NotFound, &format!("nothing can be put to {}", request.path));
        }
        let Some((header, seconds)) = request.ttl else {
            let why = "how long the token is to last is missing: a header X-metadata-token-ttl-seconds or \
                       X-aws-ec2-metadata-token-ttl-seconds";
            return Response::error(Status::BadRequest, why);
        };
        let age = now.saturating_duration_since(self.start);
        let ttl = seconds.parse().ok();
        let token = ttl.and_then(|ttl| Some((ttl, self.lock().tokens.issue(age, ttl)?)));
        match token {
            Some((ttl, token)) => {
                self.metrics.tokens_issued.increment();
                Response { ttl: Some((header, ttl)), ..Response::text(token) }
            }
            None => Response::error(Status::BadRequest, "a token lasts 1 to 21600 seconds"),
        }
    }

    /// A lock that outlives a panic: a document is replaced as a whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Random bytes of the host; when fuzzing always the same, so that inputs do the same again.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [7; N];
    // Not the crate `getrandom`: in a program that is linked statically it finds no such function of the C library, and
    // wants `/dev/urandom`, which a jail need not have.
    while !cfg!(fuzzing) {
        // SAFETY: the pointer and the length are those of an array that this function may write.
        let len = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
        // As few bytes as these come all at once or not at all (getrandom(2)).
        if usize::try_from(len) == Ok(N) {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(Error::Random(error));
        }
    }
    Ok(bytes)
}
