import type { Tool } from './tool.ts';
import { batchEditImages } from './tools/batch-edit-images.ts';
import { batchGenerate } from './tools/batch-generate.ts';
import { cancelBatch } from './tools/cancel-batch.ts';
import { deleteStyle } from './tools/delete-style.ts';
import { editImage } from './tools/edit-image.ts';
import { estimateGeneration } from './tools/estimate-generation.ts';
import { generateImage } from './tools/generate-image.ts';
import { getImage } from './tools/get-image.ts';
import { getJob } from './tools/get-job.ts';
import { getModelInfo } from './tools/get-model-info.ts';
import { gpuStatus } from './tools/gpu-status.ts';
import { listHosts } from './tools/list-hosts.ts';
import { listImages } from './tools/list-images.ts';
import { listJobs } from './tools/list-jobs.ts';
import { listModels } from './tools/list-models.ts';
import { listPresets } from './tools/list-presets.ts';
import { loadModel } from './tools/load-model.ts';
import { offloadGpu } from './tools/offload-gpu.ts';
import { releaseGpu } from './tools/release-gpu.ts';
import { saveStyle } from './tools/save-style.ts';
import { serverHealth } from './tools/server-health.ts';

/** Every tool, in the order in which clients see them. The order is fixed: clients cache it. */
export const TOOLS: readonly Tool[] = [
  generateImage,
  editImage,
  batchGenerate,
  batchEditImages,
  getJob,
  listJobs,
  cancelBatch,
  listModels,
  getModelInfo,
  listPresets,
  estimateGeneration,
  listHosts,
  gpuStatus,
  serverHealth,
  loadModel,
  offloadGpu,
  releaseGpu,
  getImage,
  listImages,
  saveStyle,
  deleteStyle,
];
