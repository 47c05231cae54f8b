// A program of the benchmark: between an engine and a client it does with the bytes of a picture exactly what the agent does,
// with the agent's own modules, and sends them on as they come. Not what comes beside and after that: disk, preview, journal.
// With --naive it does what most relays do: read all, parse, decode, encode. Prints its port.
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import { callForImage } from '../../agent/engine/image-answer.ts';
import { FinalBytes } from '../../agent/job/final-bytes.ts';
import { openHttp, readBody } from '../../shared/http-client.ts';

const [url = '', kind] = process.argv.slice(2);
const never = new AbortController().signal;
const REQUEST = {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ prompt: 'a red fox', response_format: 'b64_json' }),
  signal: never,
  deadlineMs: 60_000,
} as const;

const server = createServer((request, response) => {
  if (request.url === '/usage') return void response.end(JSON.stringify(process.cpuUsage()));
  const work = kind === '--naive' ? naively(response) : asTheAgent(response);
  work.catch((error: unknown) => response.destroy(error as Error)); // the client sees it
});
await once(server.listen(0, '127.0.0.1'), 'listening');
const address = server.address();
process.stdout.write(`${typeof address === 'object' ? address?.port : ''}\n`);

async function asTheAgent(response: ServerResponse): Promise<void> {
  const final = new FinalBytes({
    textOf: ({ width, height }) => [{ keyword: 'parameters', text: `a red fox\nSize: ${width}x${height}` }],
    write: (bytes) => (response.write(bytes) ? undefined : once(response, 'drain').then(() => undefined)),
  });
  const sink = {
    begin: (): void => {
      response.useChunkedEncodingByDefault = false; // as where the length is known: the end of the connection ends it
      response.writeHead(200, { 'content-type': 'image/png', connection: 'close' });
    },
    write: (bytes: Buffer) => final.write(bytes),
  };
  await callForImage(url, { ...REQUEST, field: 'b64_json', sink });
  final.end();
  final.result();
  response.end();
}

async function naively(response: ServerResponse): Promise<void> {
  const body = await readBody(await openHttp(url, REQUEST), { maxBytes: 2 ** 28 });
  const answer = JSON.parse(body.toString('utf8')) as { data: { b64_json: string }[] }; // the simulator's
  const image = Buffer.from(answer.data[0]?.b64_json ?? '', 'base64');
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ b64_json: image.toString('base64') }));
}
