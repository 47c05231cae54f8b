import { ApiError, type Complaint, invalid } from './omni-errors.ts';
import type { Size } from './picture.ts';

type Rule = { kind: 'integer' | 'number' | 'text'; isRequired?: boolean; least?: number; most?: number };

export const GENERATION_FIELDS: Record<string, Rule> = {
  prompt: { kind: 'text', isRequired: true },
  model: { kind: 'text' },
  n: { kind: 'integer', least: 1, most: 10 },
  size: { kind: 'text' },
  output_format: { kind: 'text' },
  negative_prompt: { kind: 'text' },
  num_inference_steps: { kind: 'integer', least: 1, most: 200 },
  guidance_scale: { kind: 'number', least: 0, most: 20 },
  true_cfg_scale: { kind: 'number', least: 0, most: 20 },
  seed: { kind: 'integer' },
  layers: { kind: 'integer', least: 2, most: 10 },
};
/** No bounds here, as in the original. */
export const EDIT_FIELDS: Record<string, Rule> = {
  prompt: { kind: 'text', isRequired: true },
  n: { kind: 'integer' },
  num_inference_steps: { kind: 'integer' },
  guidance_scale: { kind: 'number' },
  true_cfg_scale: { kind: 'number' },
  seed: { kind: 'integer' },
};
export const NUMBERS = new Set(['n', 'num_inference_steps', 'guidance_scale', 'true_cfg_scale', 'seed']);

/** Refuses as pydantic does, with all that is wrong at once. */
export function checkFields(body: Record<string, unknown>, rules: Record<string, Rule>): void {
  const complaints = Object.entries(rules).flatMap(([name, rule]) => complaintAbout(name, body[name], rule) ?? []);
  if (complaints.length > 0) throw invalid(complaints);
}

function complaintAbout(name: string, input: unknown, rule: Rule): Complaint | undefined {
  const loc = ['body', name];
  if (input === undefined || input === null) {
    return rule.isRequired ? { type: 'missing', loc, msg: 'Field required', input: {} } : undefined;
  }
  if (rule.kind === 'text') {
    return typeof input === 'string'
      ? undefined
      : { type: 'string_type', loc, msg: 'Input should be a valid string', input };
  }
  const value = typeof input === 'string' && input.trim() !== '' ? Number(input) : input;
  if (typeof value !== 'number' || !Number.isFinite(value) || (rule.kind === 'integer' && !Number.isInteger(value))) {
    const [type, word] = rule.kind === 'integer' ? ['int_parsing', 'integer'] : ['float_parsing', 'number'];
    return { type, loc, msg: `Input should be a valid ${word}`, input };
  }
  if (rule.least !== undefined && value < rule.least) {
    return { type: 'greater_than_equal', loc, msg: `Input should be greater than or equal to ${rule.least}`, input };
  }
  if (rule.most !== undefined && value > rule.most) {
    return { type: 'less_than_equal', loc, msg: `Input should be less than or equal to ${rule.most}`, input };
  }
  return undefined;
}

/** `WxH` with a lower-case x; no multiple of anything is asked for. */
export function parseSize(text: string, maxPixels: number): Size {
  const parts = text.split('x');
  if (parts.length !== 2) throw new ApiError(400, `Invalid size format: '${text}'. Expected format: 'WIDTHxHEIGHT'.`);
  if (!parts.every((part) => /^-?\d+$/.test(part))) {
    throw new ApiError(400, `Invalid size format: '${text}'. Width and height must be integers.`);
  }
  const [width = 0, height = 0] = parts.map(Number);
  if (width <= 0 || height <= 0) throw new ApiError(400, `Invalid size: ${text}. Width and height must be positive.`);
  if (width < 16 || height < 16)
    throw new ApiError(400, `Invalid size: ${text}. Width and height must be at least 16.`);
  if (width * height <= maxPixels) return { width, height };
  throw new ApiError(
    400,
    `Requested image size ${width}x${height} exceeds the maximum allowed size of ${maxPixels} pixels. ` +
      'You can reduce the size or raise --max-generated-image-size.',
  );
}

/** Pipelines work on multiples of 16 and take the next lower one. */
export function floored({ width, height }: Size): Size {
  return { width: Math.max(16, width - (width % 16)), height: Math.max(16, height - (height % 16)) };
}
