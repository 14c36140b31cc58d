// Shows Stator's gRPC service in six steps: node client.js [host:port] [model]

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address = "localhost:8001", model = "smollm2-135m-instruct"] = process.argv.slice(2);

const protos = fileURLToPath(new URL("../../proto", import.meta.url));
const definition = loader.loadSync("inference.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  defaults: true,
});
const { inference } = grpc.loadPackageDefinition(definition);
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());

/** Calls a unary method; a status other than OK rejects the promise. */
function call(method, request) {
  return new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + 10_000);
    client[method](request, { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

async function showMetadata() {
  const { inputs } = await call("ModelMetadata", { name: model });
  console.log("metadata:", inputs.map(({ name, datatype }) => `${name} ${datatype}`).join(", "));
}

async function showConfig() {
  const { config } = await call("ModelConfig", { name: model });
  const { max_batch_size, model_transaction_policy: policy } = config;
  console.log(`config: max_batch_size ${max_batch_size}, decoupled ${policy?.decoupled ?? false}`);
}

/** Makes an INT32 tensor of one row. */
function row(name, numbers) {
  const shape = [1, numbers.length];
  return { name, datatype: "INT32", shape, contents: { int_contents: numbers } };
}

async function inferSums() {
  const counting = Array.from({ length: 16 }, (_, index) => index);
  const response = await call("ModelInfer", {
    model_name: "add_sub",
    inputs: [row("INPUT0", counting), row("INPUT1", Array(16).fill(100))],
    outputs: [{ name: "OUTPUT0" }],
  });
  // Outputs are raw: here little-endian numbers of four bytes.
  const raw = response.raw_output_contents[0];
  const sums = counting.map((index) => raw.readInt32LE(index * 4));
  console.log("infer:", sums.join(" "));
}

/** Opens a stream with one request on it, for a generation that is streamed. */
function generate(prompt, parameters) {
  const stream = client.ModelStreamInfer();
  stream.write({
    model_name: model,
    inputs: [
      {
        name: "text_input",
        datatype: "BYTES",
        shape: [1],
        contents: { bytes_contents: [Buffer.from(prompt)] },
      },
    ],
    outputs: [{ name: "text_output" }],
    parameters: { stream: { bool_param: true }, temperature: { double_param: 0 }, ...parameters },
  });
  stream.end();
  return stream;
}

/** Returns the new text of a message of the stream, and whether it is the last one. */
function read({ error_message, infer_response }) {
  if (error_message) throw new Error(error_message);
  // An element of a BYTES tensor begins with its length, in four bytes.
  const text = infer_response.raw_output_contents[0]?.subarray(4).toString() ?? "";
  return { text, isLast: infer_response.parameters.triton_final_response?.bool_param ?? false };
}

async function streamText() {
  process.stdout.write("stream:");
  const short = { max_tokens: { int64_param: 16 } };
  for await (const message of generate("The capital of France is", short)) {
    const { text, isLast } = read(message);
    process.stdout.write(text);
    if (isLast) return console.log();
  }
  throw new Error("the stream ended before its last response");
}

async function cancelAfterThree() {
  const long = { max_tokens: { int64_param: 1000 }, ignore_eos: { bool_param: true } };
  const stream = generate("Once upon a time", long);
  let tokens = 0;
  try {
    for await (const message of stream) {
      read(message);
      tokens += 1; // some more may have arrived before the cancel
      if (tokens === 3) stream.cancel();
    }
  } catch (error) {
    if (error.code !== grpc.status.CANCELLED) throw error;
    return console.log("cancel: CANCELLED after 3 tokens");
  }
  throw new Error("the cancelled stream ended as if nothing had happened");
}

async function showError() {
  try {
    await call("ModelInfer", { model_name: "no_such_model" });
  } catch (error) {
    if (error.code !== grpc.status.NOT_FOUND) throw error;
    return console.log(`error: ${grpc.status[error.code]}: ${error.details}`);
  }
  throw new Error("an unknown model answered");
}

await showMetadata();
await showConfig();
await inferSums();
await streamText();
await cancelAfterThree();
await showError();
client.close();
