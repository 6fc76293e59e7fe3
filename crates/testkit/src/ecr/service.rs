//! Which service and action a request is for, and the wire form of answers and exceptions.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::Core;
use super::calls::{ControlCall, THROTTLED};
use super::keys::Signed;
use crate::front::{self, Exchange};
use crate::server::Dropped;

/// No request of these APIs is larger.
const LARGEST_BODY: usize = 8 * 1024 * 1024;

/// The services that are answered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Ecr,
    EcrPublic,
    Sts,
    Lambda,
}

impl Service {
    /// Its name in signatures and policies.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ecr => "ecr",
            Self::EcrPublic => "ecr-public",
            Self::Sts => "sts",
            Self::Lambda => "lambda",
        }
    }
}

/// Why a call fails: an exception of AWS.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) code: String,
    message: String,
}

impl Failure {
    pub(super) fn new(code: &str, message: &str) -> Self {
        Self {
            code: code.to_owned(),
            message: message.to_owned(),
        }
    }

    pub(super) fn invalid(message: &str) -> Self {
        Self::new("InvalidParameterException", message)
    }

    /// The answer that says so, in the form of the service.
    fn response(&self, service: Service) -> Response<Body> {
        match service {
            Service::Ecr | Service::EcrPublic => {
                let status = if self.code == "ServerException" {
                    StatusCode::INTERNAL_SERVER_ERROR
                } else {
                    StatusCode::BAD_REQUEST
                };
                let body = json!({"__type": self.code, "message": self.message});
                document(status, &body)
            }
            Service::Sts => {
                // STS has older names for what all services say.
                let (status, code) = match self.code.as_str() {
                    "AccessDeniedException" => (StatusCode::FORBIDDEN, "AccessDenied"),
                    "UnrecognizedClientException" => {
                        (StatusCode::FORBIDDEN, "InvalidClientTokenId")
                    }
                    "MissingAuthenticationTokenException" => {
                        (StatusCode::FORBIDDEN, "MissingAuthenticationToken")
                    }
                    THROTTLED => (StatusCode::BAD_REQUEST, "Throttling"),
                    code => (StatusCode::BAD_REQUEST, code),
                };
                let message = escape(&self.message);
                xml(
                    status,
                    &format!(
                        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
                         <Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
                         <RequestId>{REQUEST_ID}</RequestId></ErrorResponse>"
                    ),
                )
            }
            Service::Lambda => {
                let (status, code) = match self.code.as_str() {
                    "ResourceNotFoundException" => (StatusCode::NOT_FOUND, self.code.as_str()),
                    "AccessDeniedException"
                    | "UnrecognizedClientException"
                    | "MissingAuthenticationTokenException" => {
                        (StatusCode::FORBIDDEN, self.code.as_str())
                    }
                    THROTTLED => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException"),
                    "ServiceException" => (StatusCode::INTERNAL_SERVER_ERROR, self.code.as_str()),
                    code => (StatusCode::BAD_REQUEST, code),
                };
                let body = json!({"Type": "User", "Message": self.message});
                let mut response = document(status, &body);
                let name = HeaderName::from_static("x-amzn-errortype");
                let code = HeaderValue::from_str(code).expect("a code is a word");
                response.headers_mut().insert(name, code);
                response
            }
        }
    }
}

const REQUEST_ID: &str = "5e551011-0000-4000-8000-000000000000";

/// An answer as XML.
pub(super) fn xml(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/xml");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    with_request_id(response)
}

/// Text as it may stand in XML.
pub(super) fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}

fn document(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = front::json(status, body);
    let kind = HeaderValue::from_static("application/x-amz-json-1.1");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    with_request_id(response)
}

fn with_request_id(mut response: Response<Body>) -> Response<Body> {
    let name = HeaderName::from_static("x-amzn-requestid");
    let id = HeaderValue::from_static(REQUEST_ID);
    response.headers_mut().insert(name, id);
    response
}

/// What a request asks of which service.
struct Call {
    service: Service,
    action: String,
    body: Value,
}

impl Call {
    /// Reads a request; `None` when it is for no service that is answered for.
    fn read(exchange: &Exchange, bytes: &[u8]) -> Option<Self> {
        let pairs = |pairs: Vec<(String, String)>| {
            let pairs = pairs.into_iter().map(|(name, value)| (name, value.into()));
            Value::Object(pairs.collect::<Map<_, _>>())
        };
        let functions = exchange.path().strip_prefix("/2015-03-31/functions");
        if let Some(rest) = functions.filter(|_| *exchange.method() == Method::GET) {
            let mut body = pairs(exchange.query());
            let name = rest.trim_matches('/');
            let action = if name.is_empty() {
                "ListFunctions"
            } else {
                let (name, action) = match name.strip_suffix("/versions") {
                    Some(name) => (name, "ListVersionsByFunction"),
                    None => (name, "GetFunction"),
                };
                let name = format!("name={}", name.replace('+', "%2B"));
                let decoded = front::pairs(name.as_bytes());
                body["FunctionName"] = decoded.first()?.1.clone().into();
                action
            };
            return Some(Self {
                service: Service::Lambda,
                action: action.to_owned(),
                body,
            });
        }
        if *exchange.method() != Method::POST || exchange.path() != "/" {
            return None;
        }
        if let Some(target) = exchange.header("x-amz-target") {
            let (prefix, action) = target.split_once('.')?;
            let service = match prefix {
                "AmazonEC2ContainerRegistry_V20150921" => Service::Ecr,
                "SpencerFrontendService" => Service::EcrPublic,
                _ => return None,
            };
            let body = serde_json::from_slice(bytes).unwrap_or_default();
            let action = action.to_owned();
            return Some(Self {
                service,
                action,
                body,
            });
        }
        let body = pairs(front::pairs(bytes));
        let action = body["Action"].as_str()?.to_owned();
        Some(Self {
            service: Service::Sts,
            action,
            body,
        })
    }
}

impl Core {
    pub(super) async fn answer(&self, mut exchange: Exchange) -> Result<Response<Body>, Dropped> {
        let bytes = exchange.read_body(LARGEST_BODY).await?;
        let Some(call) = Call::read(&exchange, &bytes) else {
            let body = json!({"__type": "UnknownOperationException"});
            return Ok(document(StatusCode::NOT_FOUND, &body));
        };
        let header = exchange.header("authorization");
        let signed = header.and_then(Signed::parse);
        let token = exchange.header("x-amz-security-token");
        let outcome = self.authorise(&call, signed.as_ref(), token);
        if outcome.is_ok() {
            exchange.note_authorised();
        }
        let key = signed.as_ref().map_or("", |signed| signed.key);
        let outcome = outcome.and_then(|()| self.perform(&call, key));
        let error = outcome.as_ref().err().map(|failure| failure.code.clone());
        self.calls.push(ControlCall {
            service: call.service.name(),
            action: call.action,
            access_key: signed.as_ref().map(|signed| signed.key.to_owned()),
            region: signed.as_ref().map(|signed| signed.region.to_owned()),
            body: call.body,
            error,
        });
        Ok(outcome.unwrap_or_else(|failure| failure.response(call.service)))
    }

    /// Checks who calls, for what, and whether the test lets it.
    fn authorise(
        &self,
        call: &Call,
        signed: Option<&Signed<'_>>,
        token: Option<&str>,
    ) -> Result<(), Failure> {
        self.keys.check(signed, token)?;
        let signed = signed.expect("an unsigned request was refused just now");
        let region = match call.service {
            Service::Ecr => Some(self.region.as_str()),
            Service::EcrPublic => Some("us-east-1"),
            Service::Sts | Service::Lambda => None,
        };
        if signed.service != call.service.name()
            || region.is_some_and(|region| region != signed.region)
        {
            let message = format!(
                "Credential should be scoped to correct service: '{}' and a valid region",
                call.service.name()
            );
            return Err(Failure::new("InvalidSignatureException", &message));
        }
        if let Some(failure) = self.script.take_failure(call.service, &call.action) {
            return Err(failure);
        }
        if self.script.denies(call.service, &call.action) {
            let (user, action) = (self.keys.arn(signed.key), &call.action);
            let service = call.service.name();
            let resource = match call.body["repositoryName"].as_str() {
                Some(name) => self.arn("ecr", &format!("repository/{name}")),
                None => "*".to_owned(),
            };
            let message = format!(
                "User: {user} is not authorized to perform: {service}:{action} on resource: \
                 {resource} because no identity-based policy allows the {service}:{action} action"
            );
            return Err(Failure::new("AccessDeniedException", &message));
        }
        Ok(())
    }

    fn perform(&self, call: &Call, key: &str) -> Result<Response<Body>, Failure> {
        let body = &call.body;
        let answer = match call.service {
            Service::Sts => return self.sts(&call.action, body, key),
            Service::EcrPublic => self.ecr_public(&call.action)?,
            Service::Lambda => self.lambda(&call.action, body)?,
            Service::Ecr => match call.action.as_str() {
                "ListImages" | "DescribeImages" | "BatchGetImage" | "BatchDeleteImage" => {
                    self.images(&call.action, body)?
                }
                action => self.repositories(action, body, key)?,
            },
        };
        Ok(document(StatusCode::OK, &answer))
    }
}

/// The failure of an action that the service does not have, or that is not answered for here.
pub(super) fn unknown_operation(action: &str) -> Failure {
    let message = format!("{action} is not known to the fake");
    Failure::new("UnknownOperationException", &message)
}
