import com.google.protobuf.ByteString;
import inference.GRPCInferenceServiceGrpc;
import inference.GRPCInferenceServiceGrpc.GRPCInferenceServiceBlockingV2Stub;
import inference.Inference.*;
import inference.Inference.ModelInferRequest.InferInputTensor;
import inference.Inference.ModelInferRequest.InferRequestedOutputTensor;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import java.nio.ByteOrder;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** Shows Stator's gRPC service in six steps: {@code ./run [host:port] [model]}. */
record Client(GRPCInferenceServiceBlockingV2Stub stub, String model) {

  public static void main(String[] arguments) throws Exception {
    var address = arguments.length > 0 ? arguments[0] : "localhost:8001";
    var model = arguments.length > 1 ? arguments[1] : "smollm2-135m-instruct";
    var channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
    try {
      var client = new Client(GRPCInferenceServiceGrpc.newBlockingV2Stub(channel), model);
      client.showMetadata();
      client.showConfig();
      client.inferSums();
      client.streamText();
      client.cancelAfterThree();
      client.showError();
    } finally {
      channel.shutdownNow();
    }
  }

  void showMetadata() throws StatusException {
    var metadata = stub.modelMetadata(ModelMetadataRequest.newBuilder().setName(model).build());
    System.out.println(metadata.getInputsList().stream()
        .map(input -> input.getName() + " " + input.getDatatype())
        .collect(Collectors.joining(", ", "metadata: ", "")));
  }

  void showConfig() throws StatusException {
    var request = ModelConfigRequest.newBuilder().setName(model).build();
    var config = stub.modelConfig(request).getConfig();
    var decoupled = config.getModelTransactionPolicy().getDecoupled();
    System.out.printf("config: max_batch_size %d, decoupled %b%n", config.getMaxBatchSize(), decoupled);
  }

  void inferSums() throws StatusException {
    var counting = IntStream.range(0, 16).boxed().toList();
    var response = stub.modelInfer(ModelInferRequest.newBuilder()
        .setModelName("add_sub")
        .addInputs(row("INPUT0", counting))
        .addInputs(row("INPUT1", Collections.nCopies(16, 100)))
        .addOutputs(InferRequestedOutputTensor.newBuilder().setName("OUTPUT0"))
        .build());
    // Outputs are raw: here little-endian numbers of four bytes.
    var raw = response.getRawOutputContents(0).asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
    System.out.println(counting.stream()
        .map(index -> Integer.toString(raw.getInt(index * 4)))
        .collect(Collectors.joining(" ", "infer: ", "")));
  }

  static InferInputTensor.Builder row(String name, List<Integer> numbers) {
    var contents = InferTensorContents.newBuilder().addAllIntContents(numbers);
    return InferInputTensor.newBuilder()
        .setName(name).setDatatype("INT32").addShape(1).addShape(16).setContents(contents);
  }

  void streamText() throws Exception {
    var stream = generate("The capital of France is", Map.of("max_tokens", number(16)));
    System.out.print("stream:");
    ModelInferResponse response;
    do {
      response = next(stream);
      // An element of a BYTES tensor begins with its length, in four bytes.
      System.out.print(response.getRawOutputContents(0).substring(4).toStringUtf8());
      System.out.flush();
    } while (!response.getParametersOrThrow("triton_final_response").getBoolParam());
    System.out.println();
  }

  void cancelAfterThree() throws Exception {
    var settings = Map.of("max_tokens", number(1000), "ignore_eos", yes());
    var stream = generate("Once upon a time", settings);
    for (var tokens = 0; tokens < 3; tokens++) {
      next(stream);
    }
    stream.cancel("three tokens are enough", null);
    try {
      while (true) {
        next(stream); // what had arrived before the cancel is still handed out
      }
    } catch (StatusException error) {
      if (error.getStatus().getCode() != Status.Code.CANCELLED) throw error;
      System.out.println("cancel: CANCELLED after 3 tokens");
    }
  }

  void showError() throws StatusException {
    try {
      stub.modelInfer(ModelInferRequest.newBuilder().setModelName("no_such_model").build());
      throw new IllegalStateException("an unknown model answered");
    } catch (StatusException error) {
      if (error.getStatus().getCode() != Status.Code.NOT_FOUND) throw error;
      System.out.println("error: NOT_FOUND: " + error.getStatus().getDescription());
    }
  }

  /** Opens a stream with one request on it, for a generation that is streamed. */
  BlockingClientCall<ModelInferRequest, ModelStreamInferResponse> generate(
      String prompt, Map<String, InferParameter> settings) throws Exception {
    var text = InferTensorContents.newBuilder().addBytesContents(ByteString.copyFromUtf8(prompt));
    var stream = stub.modelStreamInfer();
    stream.write(ModelInferRequest.newBuilder()
        .setModelName(model)
        .addInputs(InferInputTensor.newBuilder()
            .setName("text_input").setDatatype("BYTES").addShape(1).setContents(text))
        .addOutputs(InferRequestedOutputTensor.newBuilder().setName("text_output"))
        .putParameters("stream", yes())
        .putParameters("temperature", number(0))
        .putAllParameters(settings)
        .build());
    stream.halfClose();
    return stream;
  }

  static ModelInferResponse next(BlockingClientCall<?, ModelStreamInferResponse> stream) throws Exception {
    var message = stream.read();
    if (message == null) throw new IllegalStateException("the stream ended before its last response");
    if (!message.getErrorMessage().isEmpty()) throw new IllegalStateException(message.getErrorMessage());
    return message.getInferResponse();
  }

  static InferParameter number(long value) {
    return InferParameter.newBuilder().setInt64Param(value).build();
  }

  static InferParameter yes() {
    return InferParameter.newBuilder().setBoolParam(true).build();
  }
}
