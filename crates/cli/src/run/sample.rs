//! Events as services of AWS send them, to try a function with.

use clap::ValueEnum;

/// A sample by the name of the service that sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SampleName {
    /// A REST API of API Gateway, and HTTP APIs with payload format 1.0
    #[value(name = "apigateway-v1", aliases = ["apigw-v1", "apigateway-rest", "rest"])]
    ApiGatewayV1,
    /// An HTTP API of API Gateway, payload format 2.0, and function URLs
    #[value(name = "apigateway-v2", aliases = ["apigw-v2", "apigateway-http", "http", "function-url"])]
    ApiGatewayV2,
    /// A new object in a bucket
    S3,
    /// Two messages of a queue
    Sqs,
    /// A notification of a topic
    Sns,
    /// An event of a bus
    #[value(name = "eventbridge", alias = "events")]
    EventBridge,
    /// Changes of a table, by its stream
    #[value(name = "dynamodb", aliases = ["dynamodb-stream", "ddb"])]
    DynamoDb,
    /// A request by way of an Application Load Balancer
    Alb,
}

impl SampleName {
    /// The event: a JSON document.
    pub(crate) fn event(self) -> &'static str {
        match self {
            Self::ApiGatewayV1 => include_str!("samples/apigateway-v1.json"),
            Self::ApiGatewayV2 => include_str!("samples/apigateway-v2.json"),
            Self::S3 => include_str!("samples/s3.json"),
            Self::Sqs => include_str!("samples/sqs.json"),
            Self::Sns => include_str!("samples/sns.json"),
            Self::EventBridge => include_str!("samples/eventbridge.json"),
            Self::DynamoDb => include_str!("samples/dynamodb.json"),
            Self::Alb => include_str!("samples/alb.json"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn each_sample_has_what_tells_its_service() {
        for (name, pointer, expected) in [
            (SampleName::ApiGatewayV1, "/version", "1.0"),
            (SampleName::ApiGatewayV2, "/version", "2.0"),
            (SampleName::S3, "/Records/0/eventSource", "aws:s3"),
            (SampleName::Sqs, "/Records/0/eventSource", "aws:sqs"),
            (SampleName::Sns, "/Records/0/EventSource", "aws:sns"),
            (SampleName::EventBridge, "/detail-type", "Order Placed"),
            (
                SampleName::DynamoDb,
                "/Records/0/eventSource",
                "aws:dynamodb",
            ),
            (SampleName::Alb, "/httpMethod", "POST"),
        ] {
            let event: Value = serde_json::from_str(name.event()).unwrap();
            let found = event.pointer(pointer).and_then(Value::as_str);
            assert_eq!(found, Some(expected), "{name:?}");
        }
    }

    #[test]
    fn every_sample_ends_its_last_line() {
        for name in SampleName::value_variants() {
            assert!(name.event().ends_with("}\n"), "{name:?}");
            assert!(!name.event().contains('\t'), "{name:?}");
        }
    }

    #[test]
    fn a_message_has_the_digest_that_it_states() {
        // A function that checks `md5OfBody` must not stumble over a sample: of two messages the
        // digests differ, and have their form. (MD5 itself is nowhere in the dependencies.)
        let event: Value = serde_json::from_str(SampleName::Sqs.event()).unwrap();
        let records = event["Records"].as_array().unwrap();
        let digests: Vec<&str> = records
            .iter()
            .filter_map(|it| it["md5OfBody"].as_str())
            .collect();
        assert_eq!(digests.len(), 2);
        assert_ne!(digests[0], digests[1]);
        assert!(
            digests
                .iter()
                .all(|it| it.len() == 32 && it.bytes().all(|b| b.is_ascii_hexdigit()))
        );
    }

    #[test]
    fn other_names_are_understood() {
        for (text, expected) in [
            ("apigw-v1", SampleName::ApiGatewayV1),
            ("http", SampleName::ApiGatewayV2),
            ("eventbridge", SampleName::EventBridge),
            ("events", SampleName::EventBridge),
            ("dynamodb", SampleName::DynamoDb),
            ("alb", SampleName::Alb),
        ] {
            assert_eq!(SampleName::from_str(text, false), Ok(expected), "{text}");
        }
    }
}
