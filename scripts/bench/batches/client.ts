import { Agent, request } from 'node:http';
import type { BenchJob } from './fixture.ts';
import { SIDE } from './fleet.ts';

/** A TCP port of an engine, or the unix socket of a proxy. */
export type Target = { port: number } | { socketPath: string };

/** As many jobs at once as are asked for, over one connection each: what a program without gantry would do. */
export async function askAll(
  jobs: readonly BenchJob[],
  o: { targetOf: (index: number) => Target; model: string; signal: AbortSignal },
): Promise<{ makespanMs: number }> {
  const agent = new Agent({ keepAlive: true, maxSockets: Infinity });
  try {
    const fromMs = performance.now();
    await Promise.all(
      jobs.map((job, index) => ask(job, { agent, target: o.targetOf(index), model: o.model, signal: o.signal })),
    );
    return { makespanMs: performance.now() - fromMs };
  } finally {
    agent.destroy();
  }
}

/** One job; resolves with the time from the first byte sent to the last one received. */
export async function ask(
  { prompt, steps }: BenchJob,
  o: { agent?: Agent; target: Target; model: string; signal: AbortSignal },
): Promise<number> {
  const body = JSON.stringify({
    ...{
      model: o.model,
      prompt,
      size: `${SIDE}x${SIDE}`,
      num_inference_steps: steps,
      guidance_scale: 1,
      n: 1,
      seed: 1,
    },
    response_format: 'b64_json',
  });
  const startMs = performance.now();
  await new Promise<void>((resolve, reject) => {
    const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) };
    const path = '/v1/images/generations';
    const options = { ...o.target, host: '127.0.0.1', method: 'POST', path, headers, agent: o.agent, signal: o.signal };
    const sent = request(options, (answer) => {
      answer.on('error', reject);
      answer.on('end', () =>
        answer.statusCode === 200 ? resolve() : reject(new Error(`the engine answered ${answer.statusCode}`)),
      );
      answer.resume();
    });
    sent.on('error', reject);
    sent.end(body);
  });
  return performance.now() - startMs;
}
