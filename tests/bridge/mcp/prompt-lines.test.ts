import { expect, test } from 'vitest';
import { ofLine, ownArguments } from '../../../bridge/mcp/prompt-lines.ts';
import { AppError } from '../../../shared/errors.ts';

const line = (values: Record<string, unknown>, prompt = 'a fox') => ({ prompt, values });

test('numbers of a CSV are texts, and are read as numbers', () => {
  const { own, notes } = ownArguments([
    line({ width: '512', guidance_scale: '3.5', seed: '7', negative_prompt: '12' }),
  ]);
  expect(own).toEqual([{ prompt: 'a fox', width: 512, guidance_scale: 3.5, seed: 7, negative_prompt: '12' }]);
  expect(notes).toEqual([]);
});

test('what the owner of the file keeps there is ignored with one note', () => {
  const { own, notes } = ownArguments([line({ id: 4 }), line({ id: 5, campaign: 'x' })]);
  expect(own).toEqual([{ prompt: 'a fox' }, { prompt: 'a fox' }]);
  expect(notes).toHaveLength(1);
  expect(notes[0]).toMatch(/^What prompts_file says as id, campaign was ignored; a line may give prompt, /);
});

test.each<[string, Record<string, unknown>, RegExp]>([
  ['a misspelt argument', { steps: 4 }, /^Prompt 2 of prompts_file: "steps" .* Did you mean num_inference_steps\?$/],
  ['no number', { width: 'wide' }, /^Prompt 2 of prompts_file: width must be a number\.$/],
  [
    'too many steps',
    { num_inference_steps: '500' },
    /^Prompt 2 of prompts_file: num_inference_steps must be at most 200/,
  ],
])('%s is refused with its place', (_, values, why) => {
  expect(() => ownArguments([line({}), line(values)])).toThrow(why);
});

test('what is found out later names the line too, and keeps its code', () => {
  const fail = () => {
    throw new AppError('GPU_OUT_OF_MEMORY', 'Too large.');
  };
  expect(() => ofLine(4, fail)).toThrow('Prompt 5 of prompts_file: Too large.');
  expect(() => ofLine(4, fail)).toThrow(expect.objectContaining({ code: 'GPU_OUT_OF_MEMORY' }));
});
