// A program of the benchmark: fetches a picture over several ways in turn, and prints the median times of each as JSON.
// Arguments: rounds, then NAME=METHOD:URL for each way.
import { performance } from 'node:perf_hooks';
import { openHttp } from '../../shared/http-client.ts';
import { median } from './median.ts';

/** To the last byte, and to the picture in hand: where it came as base64 in JSON, parsed and decoded. */
type Times = { lastByteMs: number; inHandMs: number };

const WARM_UP = 5;
const never = new AbortController().signal;
const [rounds = '', ...ways] = process.argv.slice(2);
const times = new Map<string, Times[]>();
for (let round = 0; round < Number(rounds) + WARM_UP; round += 1) {
  // In turn, so that a busy moment of the machine hits all of them alike.
  for (const way of ways) {
    const [name = '', method, url = ''] = /^(\w+)=(GET|POST):(.+)$/.exec(way)?.slice(1) ?? [];
    const taken = await fetchOnce(url, method === 'POST' ? 'POST' : 'GET');
    if (round >= WARM_UP) times.set(name, [...(times.get(name) ?? []), taken]);
  }
}
const medians = [...times].map(([name, all]) => [
  name,
  { lastByteMs: median(all.map((each) => each.lastByteMs)), inHandMs: median(all.map((each) => each.inHandMs)) },
]);
process.stdout.write(JSON.stringify(Object.fromEntries(medians)));

async function fetchOnce(url: string, method: 'GET' | 'POST'): Promise<Times> {
  const body = method === 'POST' ? JSON.stringify({ prompt: 'a red fox', response_format: 'b64_json' }) : undefined;
  const startedMs = performance.now();
  const answer = await openHttp(url, {
    method,
    headers: { 'content-type': 'application/json' },
    ...(body !== undefined && { body }),
    signal: never,
    deadlineMs: 60_000,
  });
  if (answer.status !== 200) throw new Error(`${url} answered ${answer.status}`);
  const chunks: Buffer[] = [];
  for await (const chunk of answer.body as AsyncIterable<Buffer>) chunks.push(chunk);
  const lastByteMs = performance.now() - startedMs;
  const bytes = Buffer.concat(chunks);
  const isJson = answer.headers['content-type']?.startsWith('application/json') === true;
  const image = isJson ? decoded(bytes) : bytes;
  if (image.readUInt32BE(0) !== 0x89504e47) throw new Error(`${url} sent no PNG`);
  return { lastByteMs, inHandMs: performance.now() - startedMs };
}

function decoded(bytes: Buffer): Buffer {
  const answer = JSON.parse(bytes.toString('utf8')) as { b64_json?: string; data?: { b64_json: string }[] }; // ours
  return Buffer.from(answer.b64_json ?? answer.data?.[0]?.b64_json ?? '', 'base64');
}
