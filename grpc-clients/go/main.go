// Command stator-client shows Stator's gRPC service in six steps: ./run [host:port] [model]
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "stator-client/generated"
)

type (
	service  = pb.GRPCInferenceServiceClient
	tensor   = pb.ModelInferRequest_InferInputTensor
	output   = pb.ModelInferRequest_InferRequestedOutputTensor
	contents = pb.InferTensorContents
	settings = map[string]*pb.InferParameter
	messages = grpc.BidiStreamingClient[pb.ModelInferRequest, pb.ModelStreamInferResponse]
)

var yes = &pb.InferParameter{ParameterChoice: &pb.InferParameter_BoolParam{BoolParam: true}}

func main() {
	log.SetFlags(0)
	address, model := "localhost:8001", "smollm2-135m-instruct"
	_, _ = fmt.Sscan(strings.Join(os.Args[1:], " "), &address, &model) // those that are given
	plaintext := grpc.WithTransportCredentials(insecure.NewCredentials())
	connection := must(grpc.NewClient(address, plaintext))
	defer connection.Close()

	ctx, client := context.Background(), pb.NewGRPCInferenceServiceClient(connection)
	showMetadata(ctx, client, model)
	showConfig(ctx, client, model)
	inferSums(ctx, client)
	streamText(ctx, client, model)
	cancelAfterThree(ctx, client, model)
	showError(ctx, client)
}

func showMetadata(ctx context.Context, client service, model string) {
	metadata := must(client.ModelMetadata(ctx, &pb.ModelMetadataRequest{Name: model}))
	var inputs []string
	for _, input := range metadata.Inputs {
		inputs = append(inputs, input.Name+" "+input.Datatype)
	}
	fmt.Println("metadata:", strings.Join(inputs, ", "))
}

func showConfig(ctx context.Context, client service, model string) {
	config := must(client.ModelConfig(ctx, &pb.ModelConfigRequest{Name: model})).GetConfig()
	decoupled := config.GetModelTransactionPolicy().GetDecoupled()
	fmt.Printf("config: max_batch_size %d, decoupled %t\n", config.GetMaxBatchSize(), decoupled)
}

func inferSums(ctx context.Context, client service) {
	row := func(name string, numbers []int32) *tensor {
		return &tensor{Name: name, Datatype: "INT32", Shape: []int64{1, 16}, Contents: &contents{IntContents: numbers}}
	}
	counting := []int32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	response := must(client.ModelInfer(ctx, &pb.ModelInferRequest{
		ModelName: "add_sub",
		Inputs:    []*tensor{row("INPUT0", counting), row("INPUT1", slices.Repeat([]int32{100}, 16))},
		Outputs:   []*output{{Name: "OUTPUT0"}},
	}))
	// Outputs are raw: here little-endian numbers of four bytes.
	sums := make([]int32, 16)
	must(binary.Decode(response.RawOutputContents[0], binary.LittleEndian, sums))
	fmt.Println("infer:", strings.Trim(fmt.Sprint(sums), "[]"))
}

func streamText(ctx context.Context, client service, model string) {
	stream := generate(ctx, client, model, "The capital of France is", settings{"max_tokens": integer(16)})
	fmt.Print("stream:")
	for text, isLast := "", false; !isLast; fmt.Print(text) {
		text, isLast = read(must(stream.Recv()))
	}
	fmt.Println()
}

func cancelAfterThree(ctx context.Context, client service, model string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	long := settings{"max_tokens": integer(1000), "ignore_eos": yes}
	stream := generate(ctx, client, model, "Once upon a time", long)
	for range 3 {
		read(must(stream.Recv()))
	}
	cancel()
	_, err := stream.Recv()
	for err == nil { // what had arrived before is still handed out
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Canceled {
		log.Fatal("a cancelled stream ended otherwise: ", err)
	}
	fmt.Println("cancel: CANCELLED after 3 tokens")
}

func showError(ctx context.Context, client service) {
	_, err := client.ModelInfer(ctx, &pb.ModelInferRequest{ModelName: "no_such_model"})
	if status.Code(err) != codes.NotFound {
		log.Fatal("an unknown model answered: ", err)
	}
	fmt.Println("error: NOT_FOUND:", status.Convert(err).Message())
}

// generate opens a stream with one request on it, for a generation that is streamed.
func generate(ctx context.Context, client service, model, prompt string, parameters settings) messages {
	parameters["stream"], parameters["temperature"] = yes, integer(0)
	text := &contents{BytesContents: [][]byte{[]byte(prompt)}}
	inputs := []*tensor{{Name: "text_input", Datatype: "BYTES", Shape: []int64{1}, Contents: text}}
	stream := must(client.ModelStreamInfer(ctx))
	// Why sending failed, receiving tells.
	_ = stream.Send(&pb.ModelInferRequest{ModelName: model, Inputs: inputs, Parameters: parameters,
		Outputs: []*output{{Name: "text_output"}}})
	_ = stream.CloseSend()
	return stream
}

// read returns the new text of a message of a stream, and whether it is the last one.
func read(message *pb.ModelStreamInferResponse) (text string, isLast bool) {
	if message.ErrorMessage != "" {
		log.Fatal(message.ErrorMessage)
	}
	response := message.GetInferResponse()
	// An element of a BYTES tensor begins with its length, in four bytes.
	text = string(response.GetRawOutputContents()[0][4:])
	return text, response.GetParameters()["triton_final_response"].GetBoolParam()
}

func integer(value int64) *pb.InferParameter {
	return &pb.InferParameter{ParameterChoice: &pb.InferParameter_Int64Param{Int64Param: value}}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
