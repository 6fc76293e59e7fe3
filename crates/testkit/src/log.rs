//! What a fake server was asked, so that tests can assert what did *not* travel.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, Method, StatusCode};

/// Which of a fake registry's servers took a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The registry itself, under `/v2/`.
    Registry,
    /// The token server of bearer authentication.
    Token,
    /// The second host, which blobs are redirected to.
    Storage,
    /// The API that manages a [`FakeEcr`](crate::FakeEcr).
    Control,
}

/// One request and its answer.
#[derive(Clone)]
pub struct Record {
    /// The server that took it.
    pub endpoint: Endpoint,
    /// Its method.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
    /// Its query, without the question mark; empty when there is none.
    pub query: String,
    /// Its `Host` header.
    pub host: String,
    /// The repository it names, if it is about one.
    pub repository: Option<String>,
    /// All its headers but `Authorization`.
    pub headers: HeaderMap,
    /// Whether its credentials were accepted; true when the registry asks for none.
    pub authorised: bool,
    /// The scheme of its `Authorization` header, lower-case.
    pub scheme: Option<String>,
    /// The answer's status; `None` when the connection was dropped or the answer is still made.
    pub status: Option<StatusCode>,
    /// Bytes of the request's body that the server read.
    pub bytes_received: u64,
    /// Bytes of the answer's body that went out.
    pub bytes_sent: u64,
    authorization: Option<String>,
    started: u64,
    ended: Option<u64>,
}

impl Record {
    /// The exact `Authorization` header, for tests that look for leaks.
    ///
    /// Nothing else of this crate shows it: a record's `Debug` does not.
    pub fn authorization_seen(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// A header's value as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The answer's status as a number, 0 when the connection was dropped.
    pub fn status_code(&self) -> u16 {
        self.status.map_or(0, |status| status.as_u16())
    }

    /// Whether it belongs to the upload of a blob.
    pub fn is_upload(&self) -> bool {
        self.path.contains("/blobs/uploads/")
    }

    /// Whether it asks for a blob's bytes, at the registry or at the second host.
    pub fn is_blob_download(&self) -> bool {
        self.method == Method::GET
            && !self.is_upload()
            && (self.path.contains("/blobs/") || self.endpoint == Endpoint::Storage)
    }

    pub(crate) fn new(
        endpoint: Endpoint,
        method: Method,
        (path, query): (String, String),
        headers: &HeaderMap,
    ) -> Self {
        let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
        let authorization = text("authorization");
        let scheme = authorization
            .as_deref()
            .and_then(|value| value.split(' ').next())
            .map(str::to_ascii_lowercase);
        let mut shown = headers.clone();
        shown.remove("authorization");
        Self {
            endpoint,
            method,
            path,
            query,
            host: text("host").unwrap_or_default(),
            repository: None,
            headers: shown,
            authorised: false,
            scheme,
            status: None,
            bytes_received: 0,
            bytes_sent: 0,
            authorization,
            started: 0,
            ended: None,
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.to_string())
    }
}

/// One line: `PUT /v2/a/manifests/t basic 201 <512 >0`.
impl fmt::Display for Record {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.method, self.path)?;
        // Signed addresses carry secrets in their query; only the registry's own are shown.
        if !self.query.is_empty() && self.endpoint == Endpoint::Registry {
            write!(formatter, "?{}", self.query)?;
        }
        write!(
            formatter,
            " {} {} <{} >{}",
            self.scheme.as_deref().unwrap_or("anonymous"),
            self.status_code(),
            self.bytes_received,
            self.bytes_sent
        )
    }
}

/// The requests a fake server took, oldest first: a copy made at one moment.
#[derive(Clone, Default)]
pub struct RequestLog {
    records: Vec<Record>,
}

impl RequestLog {
    /// All requests.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// How many requests there were.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nobody asked anything.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The requests that a predicate picks.
    #[must_use]
    pub fn filter(&self, predicate: impl Fn(&Record) -> bool) -> Self {
        let records = self.records.iter().filter(|record| predicate(record));
        Self {
            records: records.cloned().collect(),
        }
    }

    /// The requests of one method whose path contains `fragment`.
    #[must_use]
    pub fn matching(&self, method: &Method, fragment: &str) -> Self {
        self.filter(|record| record.method == *method && record.path.contains(fragment))
    }

    /// The requests about one repository.
    #[must_use]
    pub fn repository(&self, repository: &str) -> Self {
        self.filter(|record| record.repository.as_deref() == Some(repository))
    }

    /// How many requests of one method have a path that contains `fragment`.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "reads as `count(Method::HEAD, …)`"
    )]
    pub fn count(&self, method: Method, fragment: &str) -> usize {
        self.matching(&method, fragment).len()
    }

    /// Bytes of request bodies, all kinds together.
    pub fn bytes_received(&self) -> u64 {
        self.records
            .iter()
            .map(|record| record.bytes_received)
            .sum()
    }

    /// Bytes of blobs that clients uploaded, those of broken attempts included.
    pub fn blob_bytes_received(&self) -> u64 {
        self.filter(Record::is_upload).bytes_received()
    }

    /// Bytes of blobs that clients downloaded, from the registry or from the second host.
    pub fn blob_bytes_sent(&self) -> u64 {
        let downloads = self.filter(|record| {
            record.is_blob_download() && record.status.is_some_and(|status| status.is_success())
        });
        downloads
            .records
            .iter()
            .map(|record| record.bytes_sent)
            .sum()
    }

    /// How many requests were worked on at the same moment, at most.
    ///
    /// A request counts from its header until its answer is ready, the body of an upload included.
    pub fn peak(&self) -> usize {
        let mut moments: Vec<(u64, bool)> = Vec::new();
        for record in &self.records {
            moments.push((record.started, true));
            if let Some(ended) = record.ended {
                moments.push((ended, false));
            }
        }
        moments.sort_unstable();
        let (mut now, mut peak) = (0_usize, 0);
        for (_, starts) in moments {
            now = if starts {
                now + 1
            } else {
                now.saturating_sub(1)
            };
            peak = peak.max(now);
        }
        peak
    }

    /// Where `secret` was seen: in a header, a query or a path of any request.
    ///
    /// The right place of a secret is the `Authorization` header of the registry or the token
    /// server; it is a leak anywhere else, and always at the second host.
    pub fn leaks(&self, secret: &str) -> Vec<String> {
        let mut leaks = Vec::new();
        for record in &self.records {
            let in_header = record
                .headers
                .values()
                .any(|value| String::from_utf8_lossy(value.as_bytes()).contains(secret));
            let authorization = record.authorization.as_deref().unwrap_or_default();
            let misplaced = record.endpoint == Endpoint::Storage && authorization.contains(secret);
            if in_header
                || misplaced
                || record.query.contains(secret)
                || record.path.contains(secret)
            {
                leaks.push(format!("{} {}", record.method, record.path));
            }
        }
        leaks
    }
}

/// One request a line.
impl fmt::Display for RequestLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for record in &self.records {
            writeln!(formatter, "{record}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RequestLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.records).finish()
    }
}

/// Where servers write; clones share the same list.
#[derive(Clone, Default)]
pub(crate) struct Journal {
    inner: Arc<Mutex<Pages>>,
}

#[derive(Default)]
struct Pages {
    records: Vec<Record>,
    /// Counts beginnings and ends, to tell which requests overlapped.
    moment: u64,
    /// Grows when the list is cleared, so that late entries of older requests are dropped.
    epoch: u64,
}

/// The place of one request in the journal.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    epoch: u64,
    index: usize,
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, mut record: Record) -> Place {
        let mut pages = self.lock();
        pages.moment += 1;
        record.started = pages.moment;
        pages.records.push(record);
        Place {
            epoch: pages.epoch,
            index: pages.records.len() - 1,
        }
    }

    pub(crate) fn update(&self, place: Place, change: impl FnOnce(&mut Record)) {
        let mut pages = self.lock();
        if pages.epoch == place.epoch
            && let Some(record) = pages.records.get_mut(place.index)
        {
            change(record);
        }
    }

    pub(crate) fn end(&self, place: Place, status: Option<StatusCode>) {
        let moment = {
            let mut pages = self.lock();
            pages.moment += 1;
            pages.moment
        };
        self.update(place, |record| {
            record.status = status;
            record.ended = Some(moment);
        });
    }

    pub(crate) fn snapshot(&self) -> RequestLog {
        RequestLog {
            records: self.lock().records.clone(),
        }
    }

    pub(crate) fn clear(&self) {
        let mut pages = self.lock();
        pages.records.clear();
        pages.epoch += 1;
    }
}
