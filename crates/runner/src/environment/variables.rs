//! The environment variables of a function and its extensions.

use std::collections::BTreeMap;

use crate::function::Function;

/// What the service sets and no function may configure
/// (Lambda guide, "Defined runtime environment variables").
const RESERVED: [&str; 18] = [
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
];

/// A directory that no image has: what caches in it fails on Lambda too.
const HOME: &str = "/home/sbx_user1051";

/// Where programs are looked for if the image does not say, so that `#!/usr/bin/env` works.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/opt/bin";

/// Whether a function may not be configured with a variable of this name.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// What the runtime gets: of the image, then the function's own, then the service's, the later of
/// which win. `runtime_api` is host and port.
pub(super) fn variables(
    function: &Function,
    runtime_api: &str,
    log_stream: &str,
) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = [
        ("PATH", PATH),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
        ("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR"),
        ("AWS_XRAY_DAEMON_ADDRESS", "169.254.79.129:2000"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for given in [&function.image_environment, &function.environment] {
        let passed = given.iter().filter(|(name, _)| !name.starts_with('_'));
        variables.extend(passed.map(|(name, value)| (name.clone(), value.clone())));
    }
    // The image's own credentials or region would be those of whoever built it.
    for name in RESERVED {
        if !name.starts_with("LAMBDA_") {
            variables.remove(name);
        }
    }
    let memory = function.memory.to_string();
    let group = format!("/aws/lambda/{}", function.name);
    let service = [
        ("HOME", HOME),
        ("AWS_LAMBDA_FUNCTION_NAME", &function.name),
        ("AWS_LAMBDA_FUNCTION_VERSION", &function.version),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", &memory),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", &group),
        ("AWS_LAMBDA_LOG_STREAM_NAME", log_stream),
        ("AWS_REGION", &function.region),
        ("AWS_DEFAULT_REGION", &function.region),
        ("AWS_LAMBDA_RUNTIME_API", runtime_api),
    ];
    let mut set = |name: &str, value: &str| {
        variables.insert(name.to_owned(), value.to_owned());
    };
    for (name, value) in service {
        // A home that the user or the image chose is one they know of.
        if name != "HOME"
            || !(function.environment.contains_key(name)
                || function.image_environment.contains_key(name))
        {
            set(name, value);
        }
    }
    if let Some(handler) = &function.handler {
        set("_HANDLER", handler);
    }
    if let Some(credentials) = &function.credentials {
        set("AWS_ACCESS_KEY_ID", &credentials.access_key_id);
        set("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key);
        if let Some(token) = &credentials.session_token {
            set("AWS_SESSION_TOKEN", token);
        }
    }
    variables
}

/// What an extension gets of what the runtime gets: not what begins with `_`, nor what is about the
/// runtime alone.
pub(super) fn of_extensions(runtime: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    runtime
        .iter()
        .filter(|(name, _)| !name.starts_with('_') && *name != "AWS_XRAY_CONTEXT_MISSING")
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::function::{Credentials, Payloads};

    fn function(image: &[(&str, &str)], own: &[(&str, &str)]) -> Function {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        Function {
            name: "orders".to_owned(),
            version: "$LATEST".to_owned(),
            account: "123456789012".to_owned(),
            region: "eu-west-1".to_owned(),
            memory: 128,
            timeout: Duration::from_secs(3),
            init_limit: Duration::from_secs(10),
            payloads: Payloads::AsOnLambda,
            command: vec!["/run".to_owned(), "app.handler".to_owned()],
            handler: Some("app.handler".to_owned()),
            extensions: Vec::new(),
            directory: "/".to_owned(),
            image_environment: map(image),
            environment: map(own),
            credentials: None,
        }
    }

    #[test]
    fn the_service_wins_over_the_function_and_the_function_over_the_image() {
        let function = function(
            &[
                ("LANG", "C"),
                ("MODE", "image"),
                ("AWS_REGION", "image"),
                ("AWS_ACCESS_KEY_ID", "image"),
                ("LAMBDA_TASK_ROOT", "/srv"),
                ("_SECRET", "image"),
            ],
            &[
                ("MODE", "own"),
                ("_OWN", "own"),
                ("AWS_LAMBDA_FUNCTION_NAME", "own"),
            ],
        );
        let variables = variables(&function, "127.0.0.1:9001", "2026/11/26/[$LATEST]00");
        for (name, value) in [
            ("LANG", Some("C")),
            ("MODE", Some("own")),
            ("AWS_REGION", Some("eu-west-1")),
            ("AWS_DEFAULT_REGION", Some("eu-west-1")),
            ("AWS_ACCESS_KEY_ID", None),
            ("AWS_EXECUTION_ENV", None),
            ("LAMBDA_TASK_ROOT", Some("/srv")),
            ("LAMBDA_RUNTIME_DIR", Some("/var/runtime")),
            ("_SECRET", None),
            ("_OWN", None),
            ("_HANDLER", Some("app.handler")),
            ("_X_AMZN_TRACE_ID", None),
            ("AWS_LAMBDA_FUNCTION_NAME", Some("orders")),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", Some("128")),
            ("AWS_LAMBDA_LOG_GROUP_NAME", Some("/aws/lambda/orders")),
            ("AWS_LAMBDA_LOG_STREAM_NAME", Some("2026/11/26/[$LATEST]00")),
            ("AWS_LAMBDA_RUNTIME_API", Some("127.0.0.1:9001")),
            ("HOME", Some(HOME)),
            ("PATH", Some(PATH)),
        ] {
            assert_eq!(variables.get(name).map(String::as_str), value, "{name}");
        }
    }

    #[test]
    fn a_home_and_a_path_that_were_chosen_stay() {
        let function = function(&[("PATH", "/x"), ("HOME", "/root")], &[("HOME", "/tmp")]);
        let variables = variables(&function, "", "");
        assert_eq!(variables["HOME"], "/tmp");
        assert_eq!(variables["PATH"], "/x");
    }

    #[test]
    fn credentials_come_only_if_given() {
        let mut function = function(&[], &[("AWS_SESSION_TOKEN", "own")]);
        assert_eq!(variables(&function, "", "").get("AWS_SESSION_TOKEN"), None);
        function.credentials = Some(Credentials {
            access_key_id: "key".to_owned(),
            secret_access_key: "secret".to_owned(),
            session_token: None,
        });
        let variables = variables(&function, "", "");
        assert_eq!(variables["AWS_ACCESS_KEY_ID"], "key");
        assert_eq!(variables["AWS_SECRET_ACCESS_KEY"], "secret");
        assert_eq!(variables.get("AWS_SESSION_TOKEN"), None);
    }

    #[test]
    fn extensions_do_not_get_what_is_the_runtimes() {
        let runtime = variables(&function(&[], &[]), "127.0.0.1:9001", "");
        let extensions = of_extensions(&runtime);
        assert!(runtime.contains_key("_HANDLER"));
        assert!(!extensions.contains_key("_HANDLER"));
        assert!(!extensions.contains_key("AWS_XRAY_CONTEXT_MISSING"));
        assert_eq!(extensions["AWS_LAMBDA_RUNTIME_API"], "127.0.0.1:9001");
    }

    #[test]
    fn reserved_names_are_known() {
        assert!(is_reserved("_HANDLER"));
        assert!(is_reserved("AWS_REGION"));
        assert!(!is_reserved("PATH"));
        assert!(!is_reserved("TZ"));
    }
}
