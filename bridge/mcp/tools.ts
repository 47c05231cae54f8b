import type { Tool } from './tool.ts';
import { batchGenerate } from './tools/batch-generate.ts';
import { cancelBatch } from './tools/cancel-batch.ts';
import { editImage } from './tools/edit-image.ts';
import { generateImage } from './tools/generate-image.ts';
import { getJob } from './tools/get-job.ts';
import { gpuStatus } from './tools/gpu-status.ts';
import { listHosts } from './tools/list-hosts.ts';
import { listModels } from './tools/list-models.ts';
import { loadModel } from './tools/load-model.ts';
import { offloadGpu } from './tools/offload-gpu.ts';
import { releaseGpu } from './tools/release-gpu.ts';
import { serverHealth } from './tools/server-health.ts';

/** Every tool, in the order in which clients see them. The order is fixed: clients cache it. */
export const TOOLS: readonly Tool[] = [
  generateImage,
  editImage,
  batchGenerate,
  getJob,
  cancelBatch,
  listHosts,
  listModels,
  gpuStatus,
  serverHealth,
  loadModel,
  offloadGpu,
  releaseGpu,
];
