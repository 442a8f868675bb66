// Find objects in a photo: ./detect nano.onnx names.txt photo.jpg
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <onnxruntime_cxx_api.h>
#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>

struct Photo {
  int width, height;
  std::vector<uint8_t> pixels;  // Red, green and blue, row by row
};

Photo read_photo(const char* path) {
  int width, height;
  uint8_t* data = stbi_load(path, &width, &height, nullptr, 3);
  if (!data) throw std::runtime_error(std::string(path) + ": " + stbi_failure_reason());
  std::vector<uint8_t> pixels(data, data + size_t(3) * width * height);
  stbi_image_free(data);
  return {width, height, std::move(pixels)};
}

// Pixel i of a scaled line lies between two pixels, and takes a share of the second
struct Neighbors {
  int first, second;
  double share;
};

Neighbors neighbors(int i, int from, int to) {
  const double at = std::clamp((i + 0.5) * from / to - 0.5, 0.0, from - 1.0);
  const int first = static_cast<int>(at);
  return {first, std::min(first + 1, from - 1), at - first};
}

int mix(int a, int b, double share) { return static_cast<int>(a + (b - a) * share + 0.5); }

// The photo, scaled to width x height, in the top left corner of a gray canvas
std::vector<uint8_t> letterbox(const Photo& photo, int width, int height, int side) {
  std::vector<uint8_t> canvas(size_t(3) * side * side, 114);
  for (int y = 0; y < height; ++y) {
    const Neighbors row = neighbors(y, photo.height, height);
    for (int x = 0; x < width; ++x) {
      const Neighbors column = neighbors(x, photo.width, width);
      for (int c = 0; c < 3; ++c) {
        const auto across = [&](int y) {
          const uint8_t* line = photo.pixels.data() + size_t(3) * y * photo.width + c;
          return mix(line[3 * column.first], line[3 * column.second], column.share);
        };
        const int value = mix(across(row.first), across(row.second), row.share);
        canvas[(size_t(y) * side + x) * 3 + c] = static_cast<uint8_t>(value);
      }
    }
  }
  return canvas;
}

void detect(const char* network, const char* names_file, const char* photo_file) {
  Ort::Env env;
  Ort::Session session(env, network, Ort::SessionOptions());
  const auto input_type = session.GetInputTypeInfo(0);
  const int64_t side = input_type.GetTensorTypeAndShapeInfo().GetShape()[1];
  std::vector<std::string> names;
  std::ifstream lines(names_file);
  for (std::string line; std::getline(lines, line);) names.push_back(line);

  // Letterbox
  const Photo photo = read_photo(photo_file);
  const double scale = double(side) / std::max(photo.width, photo.height);
  const int width = std::max(1, int(std::lround(photo.width * scale)));
  const int height = std::max(1, int(std::lround(photo.height * scale)));
  std::vector<uint8_t> canvas = letterbox(photo, width, height, static_cast<int>(side));

  // Run
  const std::array<int64_t, 4> shape{1, side, side, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto images = Ort::Value::CreateTensor<uint8_t>(
      memory, canvas.data(), canvas.size(), shape.data(), shape.size());
  const char* input = "images";
  const char* output = "detections";
  const auto found = session.Run(Ort::RunOptions(), &input, &images, 1, &output, 1);

  // Undo
  const float* row = found[0].GetTensorData<float>();
  const int64_t count = found[0].GetTensorTypeAndShapeInfo().GetShape()[0];
  const auto undo = [](double n, int size, int scaled_size) {
    return std::clamp(n * size / scaled_size, 0.0, double(size));
  };
  for (int64_t i = 0; i < count; ++i, row += 7) {
    const double x1 = undo(row[1], photo.width, width);
    const double y1 = undo(row[2], photo.height, height);
    const double x2 = undo(row[1] + row[3], photo.width, width);
    const double y2 = undo(row[2] + row[4], photo.height, height);
    const char* name = names.at(static_cast<size_t>(row[5])).c_str();
    std::printf("%-15s %.2f  %.1f %.1f %.1f %.1f\n", name, row[6], x1, y1, x2, y2);
  }
}

int main(int argc, char** argv) {
  try {
    if (argc != 4) throw std::runtime_error("give nano.onnx, names.txt and photo.jpg");
    detect(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
