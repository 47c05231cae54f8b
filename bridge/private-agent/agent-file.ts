import { hostNameOf } from './vllm-url.ts';

export type PrivateSettings = {
  /** As `parseVllmUrl` writes it. */
  url: string;
  /** The server is on this machine, and so are its GPUs. */
  isHere: boolean;
  /** A request to it has so long. */
  timeoutMs: number;
};

/**
 * agent.yaml of an agent that serves one vLLM-Omni server for the bridges of this user; JSON is YAML. The same for every
 * bridge that names the URL in the same way. Whoever wants more than this runs a gantry-agent of their own.
 */
export function agentFile({ url, isHere, timeoutMs }: PrivateSettings): string {
  const settings = {
    listen: '127.0.0.1:0',
    state_dir: '.',
    models: { [hostNameOf(url, new Set())]: { engine: 'vllm-omni', attach: url } },
    // Of another machine nothing is known here, and the GPUs of this one are not its.
    ...(!isHere && { gpu: { nvidia_smi: 'none' } }),
    // It has waited already when it ends: nobody is there to save what comes of a running job before the next bridge.
    times: { job_limit: `${timeoutMs}ms`, job_grace: '100ms' },
  };
  return `${JSON.stringify(settings, undefined, 2)}\n`;
}
