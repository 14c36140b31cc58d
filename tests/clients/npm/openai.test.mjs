// OpenAI's own npm client against a running server: STATOR_URL is its base, such as
// http://127.0.0.1:8000/v1. The scripted models are those of ../conftest.py.

import assert from 'node:assert/strict';
import test from 'node:test';

import OpenAI from 'openai';

const client = new OpenAI({ baseURL: process.env.STATOR_URL, apiKey: 'none', maxRetries: 0 });
const messages = [{ role: 'user', content: 'How is the weather in Paris?' }];
const weather = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'Tells the weather of a city.',
    parameters: {
      type: 'object',
      properties: { city: { type: 'string' } },
      required: ['city'],
      additionalProperties: false,
    },
  },
};

const chat = (model, options) =>
  client.chat.completions.create({ model, messages, temperature: 0, max_completion_tokens: 300, ...options });

test('a chat is answered', async () => {
  const answer = await chat('hello');
  assert.equal(answer.choices[0].message.content, 'Hello, world.');
  assert.equal(answer.choices[0].finish_reason, 'stop');
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.ok(answer._request_id);
});

test('a stream says the same', async () => {
  const stream = await chat('party', { stream: true, stream_options: { include_usage: true } });
  let text = '';
  let usage = null;
  const ids = new Set();
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? '';
    usage = chunk.usage ?? usage;
    ids.add(chunk.id);
  }
  assert.equal(text, 'Grüße 🎉!');
  assert.equal(ids.size, 1);
  assert.ok(usage.completion_tokens > 0);
});

test('the stream helper puts an answer together', async () => {
  const deltas = [];
  const stream = client.chat.completions
    .stream({ model: 'hello', messages, temperature: 0 })
    .on('content', (delta) => deltas.push(delta));
  assert.equal(await stream.finalContent(), 'Hello, world.');
  assert.equal(deltas.join(''), 'Hello, world.');
  assert.equal((await stream.finalMessage()).role, 'assistant');
});

test('a stream that is left ends', async () => {
  const stream = await chat('slow', { stream: true, max_completion_tokens: 5000 });
  for await (const chunk of stream) {
    assert.ok(chunk.choices);
    break;
  }
  assert.ok(stream.controller.signal.aborted);
});

test('tool calls come whole and in pieces', async () => {
  const whole = await chat('callers', { tools: [weather] });
  const calls = whole.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments));
  assert.deepEqual(calls, [{ city: 'Paris' }, { city: 'Rome' }]);
  const stream = client.chat.completions.stream({
    model: 'callers', messages, tools: [weather], temperature: 0,
  });
  const message = await stream.finalMessage();
  assert.deepEqual(message.tool_calls.map((call) => JSON.parse(call.function.arguments)), calls);
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].finish_reason, 'tool_calls');
});

test('the tool runner calls the tool and goes on', async () => {
  for (const stream of [false, true]) {
    const asked = [];
    const runner = client.chat.completions.runTools(
      {
        model: 'caller',
        messages,
        stream,
        temperature: 0,
        max_completion_tokens: 300,
        tools: [{
          type: 'function',
          function: {
            ...weather.function,
            parse: JSON.parse,
            function: ({ city }) => {
              asked.push(city);
              return 'sunny';
            },
          },
        }],
      },
      // The scripted model always calls, so the second answer is a call again.
      { maxChatCompletions: 2 },
    );
    await runner.done();
    const roles = runner.messages.map((message) => message.role);
    assert.deepEqual(asked.slice(0, 1), ['Paris']);
    assert.deepEqual(roles.slice(0, 4), ['user', 'assistant', 'tool', 'assistant']);
    assert.equal(runner.messages[2].content, 'sunny');
  }
});

test('an answer follows a schema', async () => {
  const answer = await client.chat.completions.parse({
    model: 'json',
    messages,
    temperature: 0,
    response_format: {
      type: 'json_schema',
      json_schema: {
        name: 'city',
        strict: true,
        schema: {
          type: 'object',
          properties: { city: { type: 'string' }, is_capital: { type: 'boolean' } },
          required: ['city', 'is_capital'],
          additionalProperties: false,
        },
      },
    },
  });
  assert.deepEqual(JSON.parse(answer.choices[0].message.content), { city: 'Paris', is_capital: true });
});

test('completions', async () => {
  const prompt = 'x';
  const answer = await client.completions.create({ model: 'hello', prompt, temperature: 0, echo: true });
  assert.equal(answer.choices[0].text, 'xHello, world.');
  const stream = await client.completions.create({ model: 'hello', prompt, temperature: 0, stream: true });
  let text = '';
  for await (const chunk of stream) text += chunk.choices[0].text;
  assert.equal(text, 'Hello, world.');
});

test('embeddings by the default form and as numbers', async () => {
  const input = ['sea', 'ship', 'sea'];
  const { data } = await client.embeddings.create({ model: 'hello', input });
  assert.equal(data.length, 3);
  assert.deepEqual(data[0].embedding, data[2].embedding);
  const plain = await client.embeddings.create({ model: 'hello', input, encoding_format: 'float' });
  const near = (value, index) => Math.abs(value - plain.data[0].embedding[index]) < 1e-6;
  assert.equal(data[0].embedding.length, plain.data[0].embedding.length);
  assert.ok(data[0].embedding.every(near));
  const cut = await client.embeddings.create({ model: 'hello', input, dimensions: 8 });
  assert.equal(cut.data[1].embedding.length, 8);
});

test('models', async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes('hello') && names.includes('org/name'));
  assert.equal((await client.models.retrieve('org/name')).id, 'org/name');
});

test('responses are made, kept, gone on from and deleted', async () => {
  const first = await client.responses.create({ model: 'hello', input: 'Hi', temperature: 0 });
  assert.equal(first.output_text, 'Hello, world.');
  assert.equal(first.status, 'completed');
  assert.equal((await client.responses.retrieve(first.id)).output_text, 'Hello, world.');
  const next = await client.responses.create({
    model: 'party', input: 'And then?', previous_response_id: first.id, temperature: 0,
  });
  assert.equal(next.output_text, 'Grüße 🎉!');
  const items = [];
  for await (const item of client.responses.inputItems.list(next.id)) items.push(item);
  assert.ok(items.length >= 1);
  await client.responses.delete(first.id);
  await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
});

test('responses stream by events', async () => {
  const stream = client.responses.stream({ model: 'hello', input: 'Hi', temperature: 0 });
  const types = [];
  let text = '';
  for await (const event of stream) {
    types.push(event.type);
    if (event.type === 'response.output_text.delta') text += event.delta;
  }
  assert.equal(text, 'Hello, world.');
  assert.equal(types[0], 'response.created');
  assert.equal(types.at(-1), 'response.completed');
  assert.equal((await stream.finalResponse()).output_text, 'Hello, world.');
});

test('errors have their classes, codes and fields', async () => {
  await assert.rejects(chat('absent'), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, 'model_not_found');
    assert.equal(error.param, 'model');
    return true;
  });
  await assert.rejects(chat('hello', { temperature: 9 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, 'temperature');
    assert.equal(error.type, 'invalid_request_error');
    return true;
  });
  await assert.rejects(chat('hello', { stream: true, n: 0 }), OpenAI.BadRequestError);
  await assert.rejects(chat('short', { messages: [{ role: 'user', content: 'x'.repeat(99) }] }), (error) => {
    assert.equal(error.code, 'context_length_exceeded');
    return true;
  });
});
