//! A token server as the distribution project specifies it: scopes are checked, tokens are signed.
//!
//! The same server stands behind [`FakeRegistry`](crate::FakeRegistry), which looks tokens up, and
//! behind a real docker-registry, which verifies their signature.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{Method, Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio_rustls::rustls::ServerConfig;

use crate::fault::Fault;
use crate::front::{self, Exchange, Front};
use crate::log::{Endpoint, RequestLog};
use crate::password::{Passwords, Standing};
use crate::server::{Bound, Dropped, Server};
use crate::tls::TokenKey;

/// Under which name a token stands in the server's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenField {
    /// Both `token` and `access_token`.
    #[default]
    Both,
    /// Only `token`.
    Token,
    /// Only `access_token`.
    AccessToken,
}

/// How a token server behaves.
///
/// The default knows one user, `user` with the password `secret`, allows nothing without
/// credentials, and lets tokens live for five minutes.
#[derive(Clone)]
pub struct TokenSettings {
    users: BTreeMap<String, String>,
    anonymous_pull: bool,
    lifetime: Option<u64>,
    identity_token: Option<String>,
    form_post: bool,
    field: TokenField,
    denied: BTreeSet<(String, String)>,
    service: String,
    fixed_scope: Option<String>,
    path: &'static str,
}

impl Default for TokenSettings {
    fn default() -> Self {
        Self {
            users: BTreeMap::from([("user".to_owned(), "secret".to_owned())]),
            anonymous_pull: false,
            lifetime: Some(300),
            identity_token: None,
            form_post: true,
            field: TokenField::Both,
            denied: BTreeSet::new(),
            service: "testkit".to_owned(),
            fixed_scope: None,
            path: "/token",
        }
    }
}

impl TokenSettings {
    /// The default settings with one user in place of the default one.
    pub fn user(name: &str, password: &str) -> Self {
        Self {
            users: BTreeMap::from([(name.to_owned(), password.to_owned())]),
            ..Self::default()
        }
    }

    /// The settings of `public.ecr.aws`: one fixed scope, tokens for everybody, no users of its own.
    pub fn public_ecr() -> Self {
        Self {
            users: BTreeMap::new(),
            path: "/token/",
            ..Self::default()
        }
        .service("public.ecr.aws")
        .fixed_scope("aws")
        .anonymous_pull()
        .field(TokenField::Token)
        .without_post()
    }

    /// Gives tokens with `pull` alone to those who come without credentials.
    #[must_use]
    pub fn anonymous_pull(mut self) -> Self {
        self.anonymous_pull = true;
        self
    }

    /// Sets `expires_in`, and holds to it; `None` leaves the field out (which means 60 seconds).
    #[must_use]
    pub fn lifetime(mut self, seconds: Option<u64>) -> Self {
        self.lifetime = seconds;
        self
    }

    /// Accepts this identity (refresh) token by POST.
    #[must_use]
    pub fn identity_token(mut self, token: &str) -> Self {
        self.identity_token = Some(token.to_owned());
        self
    }

    /// Answers every POST with 404, as servers do that know the GET form alone.
    #[must_use]
    pub fn without_post(mut self) -> Self {
        self.form_post = false;
        self
    }

    /// Chooses the name that the token has in the answer.
    #[must_use]
    pub fn field(mut self, field: TokenField) -> Self {
        self.field = field;
        self
    }

    /// Never grants `action` (`pull`, `push`) on a repository: the token comes with fewer scopes.
    #[must_use]
    pub fn deny(mut self, repository: &str, action: &str) -> Self {
        self.denied
            .insert((repository.to_owned(), action.to_owned()));
        self
    }

    /// Names the service in challenges and demands it in requests.
    #[must_use]
    pub fn service(mut self, service: &str) -> Self {
        service.clone_into(&mut self.service);
        self
    }

    /// Challenges with one fixed scope whatever the request, and asks for exactly that one to
    /// grant pulls everywhere, as ECR Public does with `aws`.
    #[must_use]
    pub fn fixed_scope(mut self, scope: &str) -> Self {
        self.fixed_scope = Some(scope.to_owned());
        self
    }
}

impl fmt::Debug for TokenSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TokenSettings")
            .field("users", &self.users.keys())
            .field("anonymous_pull", &self.anonymous_pull)
            .field("lifetime", &self.lifetime)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// What a token allows: per repository, the actions.
type Access = BTreeMap<String, BTreeSet<String>>;

struct Grant {
    access: Access,
    everywhere: bool,
    anonymous: bool,
    issued: Instant,
}

/// What a token or its absence lets a request do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// There is no token, or one that is unknown or has expired.
    Invalid,
    /// The token is good, but not for this.
    Insufficient,
}

/// Issues tokens and remembers what they allow.
pub(crate) struct Issuer {
    pub(crate) settings: TokenSettings,
    key: TokenKey,
    name: String,
    /// Passwords that the user `AWS` may come with, beside the users of the settings.
    passwords: Passwords,
    issued: Mutex<Issued>,
}

#[derive(Default)]
struct Issued {
    grants: BTreeMap<String, Grant>,
    refresh_tokens: BTreeSet<String>,
    /// All tokens ever issued, for tests that look for leaks.
    secrets: Vec<String>,
    counter: u64,
}

impl Issuer {
    pub(crate) fn new(settings: TokenSettings, passwords: &Passwords) -> io::Result<Self> {
        let refresh_tokens = settings.identity_token.iter().cloned().collect();
        Ok(Self {
            key: TokenKey::new()?,
            name: "testkit issuer".to_owned(),
            passwords: passwords.clone(),
            issued: Mutex::new(Issued {
                refresh_tokens,
                ..Issued::default()
            }),
            settings,
        })
    }

    fn issued(&self) -> MutexGuard<'_, Issued> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every token issued so far worthless.
    pub(crate) fn expire(&self) {
        self.issued().grants.clear();
    }

    /// The path of the server's one page.
    pub(crate) fn path(&self) -> &str {
        self.settings.path
    }

    /// All tokens ever issued.
    pub(crate) fn secrets(&self) -> Vec<String> {
        self.issued().secrets.clone()
    }

    /// Whether a token was got without credentials.
    pub(crate) fn is_anonymous(&self, token: &str) -> bool {
        let issued = self.issued();
        issued
            .grants
            .get(token)
            .is_some_and(|grant| grant.anonymous)
    }

    /// Judges a bearer token against every `(repository, action)` that a request needs.
    pub(crate) fn judge(&self, token: Option<&str>, needs: &[(String, String)]) -> Verdict {
        let issued = self.issued();
        let Some(grant) = token.and_then(|token| issued.grants.get(token)) else {
            return Verdict::Invalid;
        };
        let lifetime = Duration::from_secs(self.settings.lifetime.unwrap_or(60));
        if grant.issued.elapsed() >= lifetime {
            return Verdict::Invalid;
        }
        let allowed = needs.iter().all(|(repository, action)| {
            let named = grant.access.get(repository);
            named.is_some_and(|actions| actions.contains(action))
                || (grant.everywhere && action == "pull")
        });
        if allowed {
            Verdict::Allowed
        } else {
            Verdict::Insufficient
        }
    }

    /// The challenge for a request that needs `needs`.
    pub(crate) fn challenge(
        &self,
        realm: &str,
        needs: &[(String, String)],
        verdict: &Verdict,
    ) -> String {
        let mut challenge = format!(
            "Bearer realm=\"{realm}\",service=\"{}\"",
            self.settings.service
        );
        let scope = match &self.settings.fixed_scope {
            Some(scope) => scope.clone(),
            None => scopes(needs),
        };
        if !scope.is_empty() {
            challenge = format!("{challenge},scope=\"{scope}\"");
        }
        if *verdict == Verdict::Insufficient {
            challenge.push_str(",error=\"insufficient_scope\"");
        }
        challenge
    }

    pub(crate) async fn answer(&self, mut exchange: Exchange) -> Result<Response<Body>, Dropped> {
        if exchange.path() != self.settings.path {
            return Ok(front::error(
                StatusCode::NOT_FOUND,
                "NOT_FOUND",
                "no such page",
            ));
        }
        let (form, user) = match *exchange.method() {
            Method::GET => {
                let user = exchange
                    .header("authorization")
                    .map(|value| self.basic_user(value));
                (exchange.query(), user)
            }
            Method::POST if self.settings.form_post => {
                let body = exchange.read_body(64 * 1024).await?;
                let form = front::pairs(&body);
                let user = self.form_user(&form);
                (form, Some(user))
            }
            Method::POST => {
                return Ok(front::error(
                    StatusCode::NOT_FOUND,
                    "NOT_FOUND",
                    "only GET here",
                ));
            }
            _ => return Ok(status(StatusCode::METHOD_NOT_ALLOWED)),
        };
        let anonymous = match user {
            None if self.settings.anonymous_pull => true,
            Some(Some(())) => false,
            _ => {
                return Ok(front::error(
                    StatusCode::UNAUTHORIZED,
                    "UNAUTHORIZED",
                    "incorrect username or password",
                ));
            }
        };
        let value = |key: &str| {
            form.iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value.as_str())
        };
        if value("service") != Some(&self.settings.service) {
            return Ok(front::error(
                StatusCode::BAD_REQUEST,
                "UNSUPPORTED",
                "the service is not the one of the challenge",
            ));
        }
        exchange.note_authorised();
        let asked: Vec<&str> = form
            .iter()
            .filter(|(name, _)| name == "scope")
            .flat_map(|(_, scope)| scope.split(' '))
            .collect();
        let offline =
            value("offline_token") == Some("true") || value("access_type") == Some("offline");
        let post = *exchange.method() == Method::POST;
        Ok(self.issue(&asked, anonymous, offline && !anonymous, post))
    }

    fn issue(&self, asked: &[&str], anonymous: bool, offline: bool, post: bool) -> Response<Body> {
        let mut access = Access::new();
        for scope in asked {
            let mut parts = scope.rsplitn(2, ':');
            let (Some(actions), Some(resource)) = (parts.next(), parts.next()) else {
                continue;
            };
            let Some(repository) = resource.strip_prefix("repository:") else {
                continue;
            };
            for action in actions.split(',') {
                let pair = (repository.to_owned(), action.to_owned());
                let may = !anonymous || action == "pull";
                if may && !self.settings.denied.contains(&pair) {
                    access.entry(pair.0).or_default().insert(pair.1);
                }
            }
        }
        let everywhere = self
            .settings
            .fixed_scope
            .as_deref()
            .is_some_and(|scope| asked.contains(&scope));
        let granted: Vec<(String, String)> = access
            .iter()
            .flat_map(|(name, actions)| actions.iter().map(|action| (name.clone(), action.clone())))
            .collect();
        let mut issued = self.issued();
        issued.counter += 1;
        let token = self.sign(issued.counter, &access);
        issued.grants.insert(
            token.clone(),
            Grant {
                access,
                everywhere,
                anonymous,
                issued: Instant::now(),
            },
        );
        issued.secrets.push(token.clone());
        let mut answer = json!({"issued_at": rfc3339(SystemTime::now())});
        let field = if post {
            TokenField::AccessToken
        } else {
            self.settings.field
        };
        if field != TokenField::AccessToken {
            answer["token"] = token.clone().into();
        }
        if field != TokenField::Token {
            answer["access_token"] = token.into();
        }
        if let Some(lifetime) = self.settings.lifetime {
            answer["expires_in"] = lifetime.into();
        }
        if post {
            answer["scope"] = scopes(&granted).into();
        }
        if offline {
            let refresh = format!("refresh-{}", issued.counter);
            issued.refresh_tokens.insert(refresh.clone());
            issued.secrets.push(refresh.clone());
            answer["refresh_token"] = refresh.into();
        }
        front::json(StatusCode::OK, &answer)
    }

    /// `Some` when the header names a user with the right password.
    fn basic_user(&self, header: &str) -> Option<()> {
        let (user, password) = decode_basic(header)?;
        let known = self.settings.users.get(&user) == Some(&password);
        let issued = || self.passwords.judge(&user, &password) == Standing::Valid;
        (known || issued()).then_some(())
    }

    fn form_user(&self, form: &[(String, String)]) -> Option<()> {
        let value = |key: &str| {
            form.iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value)
        };
        value("client_id")?;
        match value("grant_type")?.as_str() {
            "refresh_token" => {
                let token = value("refresh_token")?;
                self.issued().refresh_tokens.contains(token).then_some(())
            }
            "password" => {
                let known = self.settings.users.get(value("username")?)?;
                (known == value("password")?).then_some(())
            }
            _ => None,
        }
    }

    /// A JWT signed with ES256 that carries its certificate, as distribution 2.8 wants it.
    fn sign(&self, number: u64, access: &Access) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let header = json!({
            "typ": "JWT",
            "alg": "ES256",
            "x5c": [STANDARD.encode(self.key.certificate())],
        });
        let access: Vec<Value> = access
            .iter()
            .map(|(name, actions)| json!({"type": "repository", "name": name, "actions": actions}))
            .collect();
        let claims = json!({
            "iss": self.name,
            "sub": "testkit",
            "aud": self.settings.service,
            "exp": now + self.settings.lifetime.unwrap_or(60),
            "nbf": now.saturating_sub(10),
            "iat": now,
            "jti": format!("token-{number}"),
            "access": access,
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

/// User and password of a `Basic` header.
pub(crate) fn decode_basic(header: &str) -> Option<(String, String)> {
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn scopes(needs: &[(String, String)]) -> String {
    let mut repositories: Vec<(&str, Vec<&str>)> = Vec::new();
    for (repository, action) in needs {
        match repositories.iter_mut().find(|(name, _)| name == repository) {
            Some((_, actions)) => actions.push(action),
            None => repositories.push((repository, vec![action])),
        }
    }
    let scopes: Vec<String> = repositories
        .into_iter()
        .map(|(repository, actions)| format!("repository:{repository}:{}", actions.join(",")))
        .collect();
    scopes.join(" ")
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A moment in UTC, to the second.
pub(crate) fn rfc3339(moment: SystemTime) -> String {
    let seconds = moment
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a count of days, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// A token server of its own, for a real docker-registry that asks for bearer tokens.
///
/// A [`FakeRegistry`](crate::FakeRegistry) with bearer authentication starts its own.
pub struct TokenServer {
    issuer: Arc<Issuer>,
    front: Front,
    server: Server,
}

impl TokenServer {
    /// Starts a token server on a free port.
    ///
    /// # Panics
    /// When no port can be bound.
    pub fn start(settings: TokenSettings) -> Self {
        let issuer =
            Arc::new(Issuer::new(settings, &Passwords::default()).expect("a key can be made"));
        let front = Front::default();
        let bound = Bound::new().expect("a loopback port is free");
        let server = serve(bound, None, &issuer, &front);
        Self {
            issuer,
            front,
            server,
        }
    }

    /// The address that challenges name.
    pub fn realm(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.server.port())
    }

    /// The service that tokens are for.
    pub fn service(&self) -> &str {
        &self.issuer.settings.service
    }

    /// The issuer that tokens name.
    pub fn issuer(&self) -> &str {
        &self.issuer.name
    }

    /// The PEM file that verifies tokens: docker-registry's `rootcertbundle`.
    pub fn certificate_path(&self) -> PathBuf {
        self.issuer.key.certificate_path()
    }

    /// The requests so far.
    pub fn log(&self) -> RequestLog {
        self.front.journal.snapshot()
    }

    /// Plants a fault.
    pub fn inject(&self, fault: Fault) {
        self.front.faults.plant(fault);
    }
}

impl fmt::Debug for TokenServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TokenServer({})", self.realm())
    }
}

/// Serves an issuer's tokens.
pub(crate) fn serve(
    bound: Bound,
    tls: Option<Arc<ServerConfig>>,
    issuer: &Arc<Issuer>,
    front: &Front,
) -> Server {
    let issuer = Arc::clone(issuer);
    let inner: front::Inner = Arc::new(move |exchange| {
        let issuer = Arc::clone(&issuer);
        Box::pin(async move { issuer.answer(exchange).await })
    });
    bound.serve(tls, front.handler(Endpoint::Token, inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
    }

    #[test]
    fn scopes_gather_the_actions_of_a_repository() {
        let need = |repository: &str, action: &str| (repository.to_owned(), action.to_owned());
        let needs = [need("a/b", "pull"), need("a/b", "push"), need("c", "pull")];
        assert_eq!(scopes(&needs), "repository:a/b:pull,push repository:c:pull");
    }
}
