// Asks a Lambda Runtime API for events and gives them to the handler that _HANDLER names, as
// `module.function` below LAMBDA_TASK_ROOT. One at a time, whole bodies, no streams.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const api = `http://${process.env.AWS_LAMBDA_RUNTIME_API}/2018-06-01/runtime`;

async function post(path, body, type) {
  const headers = { "Content-Type": "application/json" };
  if (type) headers["Lambda-Runtime-Function-Error-Type"] = type;
  await fetch(`${api}/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
}

function told(error) {
  return { errorType: error.name, errorMessage: error.message, trace: (error.stack ?? "").split("\n") };
}

async function load() {
  const handler = process.env._HANDLER;
  const dot = handler.lastIndexOf(".");
  const start = join(process.env.LAMBDA_TASK_ROOT, handler.slice(0, dot));
  const file = [".js", ".mjs", ".cjs"].map((ending) => start + ending).find(existsSync);
  if (!file) throw new Error(`there is no module for ${handler}`);
  const found = (await import(pathToFileURL(file)))[handler.slice(dot + 1)];
  if (typeof found !== "function") throw new Error(`${handler} is no function`);
  return found;
}

let handler;
try {
  handler = await load();
} catch (error) {
  await post("init/error", told(error), "Runtime.InitError");
  process.exit(1);
}
for (;;) {
  const next = await fetch(`${api}/invocation/next`);
  const id = next.headers.get("lambda-runtime-aws-request-id");
  const context = {
    awsRequestId: id,
    invokedFunctionArn: next.headers.get("lambda-runtime-invoked-function-arn"),
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
  };
  try {
    await post(`invocation/${id}/response`, (await handler(await next.json(), context)) ?? null);
  } catch (error) {
    await post(`invocation/${id}/error`, told(error), error.name);
  }
}
