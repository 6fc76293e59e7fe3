//! Lambda's API: which functions there are, and which images they run.

use serde_json::{Value, json};

use super::Core;
use super::service::{Failure, unknown_operation};

/// Lambda lists no more functions at once.
const LARGEST_PAGE: usize = 50;

/// One version of a Lambda function.
#[derive(Debug, Clone)]
pub struct Function {
    name: String,
    version: String,
    /// The image as it was named, and as it was resolved; none when the function is an archive.
    image: Option<(String, String)>,
}

impl Function {
    /// The unpublished version of a function that runs an image: the reference that it was given, and
    /// the one by digest that it came to.
    pub fn image(name: &str, uri: &str, resolved: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: "$LATEST".to_owned(),
            image: Some((uri.to_owned(), resolved.to_owned())),
        }
    }

    /// The unpublished version of a function that runs an archive.
    pub fn archive(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: "$LATEST".to_owned(),
            image: None,
        }
    }

    /// A published version in place of the unpublished one.
    #[must_use]
    pub fn version(mut self, number: u64) -> Self {
        self.version = number.to_string();
        self
    }
}

impl Core {
    pub(super) fn lambda(&self, action: &str, query: &Value) -> Result<Value, Failure> {
        match action {
            "ListFunctions" => self.list_functions(query),
            "ListVersionsByFunction" => self.list_versions(query),
            "GetFunction" => self.get_function(query),
            _ => Err(unknown_operation(action)),
        }
    }

    fn list_functions(&self, query: &Value) -> Result<Value, Failure> {
        let all = query["FunctionVersion"] == "ALL";
        let functions = self.settings().functions.clone();
        let functions = functions
            .iter()
            .filter(|function| all || function.version == "$LATEST")
            .map(|function| self.configuration(function, all))
            .collect();
        let sizes = (LARGEST_PAGE, LARGEST_PAGE);
        let (page, next) = self.page(functions, &query["Marker"], &query["MaxItems"], sizes)?;
        let mut answer = json!({"Functions": page});
        if let Some(next) = next {
            answer["NextMarker"] = next.into();
        }
        Ok(answer)
    }

    fn list_versions(&self, query: &Value) -> Result<Value, Failure> {
        let asked = query["FunctionName"].as_str().unwrap_or_default();
        let name = asked.rsplit(':').next().unwrap_or_default();
        let functions = self.settings().functions.clone();
        let versions: Vec<Value> = functions
            .iter()
            .filter(|function| function.name == name)
            .map(|function| self.configuration(function, true))
            .collect();
        if versions.is_empty() {
            let arn = self.arn("lambda", &format!("function:{name}"));
            let message = format!("Function not found: {arn}");
            return Err(Failure::new("ResourceNotFoundException", &message));
        }
        let sizes = (LARGEST_PAGE, LARGEST_PAGE);
        let (page, next) = self.page(versions, &query["Marker"], &query["MaxItems"], sizes)?;
        let mut answer = json!({"Versions": page});
        if let Some(next) = next {
            answer["NextMarker"] = next.into();
        }
        Ok(answer)
    }

    fn get_function(&self, query: &Value) -> Result<Value, Failure> {
        let asked = query["FunctionName"].as_str().unwrap_or_default();
        let qualifier = query["Qualifier"].as_str();
        // NAME, NAME:VERSION, or an ARN that ends with one of them.
        let short = match asked.split_once(":function:") {
            Some((_, short)) => short,
            None => asked,
        };
        let (name, version) = match short.split_once(':') {
            Some((name, version)) => (name, Some(version)),
            None => (short, None),
        };
        let named = qualifier.or(version);
        let version = named.unwrap_or("$LATEST");
        let settings = self.settings();
        let found = settings
            .functions
            .iter()
            .find(|function| function.name == name && function.version == version);
        let Some(function) = found else {
            let arn = self.arn("lambda", &format!("function:{name}:{version}"));
            let message = format!("Function not found: {arn}");
            return Err(Failure::new("ResourceNotFoundException", &message));
        };
        let code = match &function.image {
            Some((uri, resolved)) => json!({
                "RepositoryType": "ECR",
                "ImageUri": uri,
                "ResolvedImageUri": resolved,
            }),
            None => json!({"RepositoryType": "S3"}),
        };
        let configuration = self.configuration(function, named.is_some());
        Ok(json!({"Configuration": configuration, "Code": code}))
    }

    fn configuration(&self, function: &Function, qualified: bool) -> Value {
        let mut resource = format!("function:{}", function.name);
        if qualified {
            resource = format!("{resource}:{}", function.version);
        }
        let hash = match &function.image {
            Some((_, resolved)) => resolved.rsplit(':').next().unwrap_or_default(),
            None => "YXJjaGl2ZQ==",
        };
        json!({
            "FunctionName": function.name,
            "FunctionArn": self.arn("lambda", &resource),
            "Role": format!("arn:{}:iam::{}:role/testkit", self.partition(), self.account),
            "Version": function.version,
            "PackageType": if function.image.is_some() { "Image" } else { "Zip" },
            "CodeSha256": hash,
            "CodeSize": 0,
            "Timeout": 3,
            "MemorySize": 128,
            "LastModified": "2026-01-01T00:00:00.000+0000",
            "State": "Active",
            "Architectures": ["x86_64"],
        })
    }
}
