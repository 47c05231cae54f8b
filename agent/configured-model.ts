import type { ModelId } from '../shared/job.ts';
import type { Capability, ModelProfile } from '../shared/model-profile.ts';

/** How a server comes to be: we start and end its process, or someone else does and we only talk to it. */
export type Launch =
  | {
      kind: 'owned';
      /** What stands before our own flags, as in ['vllm', 'serve']. */
      command: string[];
      args: string[];
      cwd?: string;
      env: Record<string, string>;
      /** What downloads its weights; 'auto' finds the program beside `command`. */
      download: 'auto' | 'none' | string[];
    }
  | {
      kind: 'attached';
      url: string;
      /** agent.yaml names no model: it is called what the server says, also when that becomes another one. */
      isNamedByServer?: boolean;
      /** Programs that start and stop it, where the owner of the host named them. */
      start?: string[];
      stop?: string[];
    };

/** One model of agent.yaml, with everything derived that the rest of the agent needs to know. */
export type ConfiguredModel = {
  /** Its key in agent.yaml. */
  alias: string;
  /** Fleet-wide: `repository@revision`, or `repository` where none is pinned. */
  id: ModelId;
  engine: 'vllm-omni' | 'step1x-edit';
  profile: ModelProfile;
  profileFrom: 'shipped' | 'configured' | 'fallback';
  capabilities: Capability[];
  launch: Launch;
  /** How many GPUs one server spans. */
  gpuCount: number;
  replicas: number | 'auto';
  /** First guess of the VRAM after load, over all its GPUs; measurements replace it. */
  vramMiB: number | null;
  offload: 'auto' | 'none';
  offloadAfterMs: number | null;
  releaseAfterMs: number | null;
  /** One small image after every load, before it counts as ready. */
  warmsUp: boolean;
  preload: boolean;
  pin: boolean;
};
